package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

const (
	maxPublication = 256 // tags of one publication
	maxDepth       = 8   // of indexes within indexes
	maxRunID       = 64  // bytes of a run's ID
	maxStepID      = 256 // bytes of a step's ID
)

// MaxFences is how many fences are listed at once.
const MaxFences = 1000

// A Publication makes images of one step of a run visible under tags.
type Publication struct {
	Run     string `json:"run"`
	Attempt int    `json:"attempt"`
	Step    string `json:"step"`
	Tags    []Tag  `json:"tags"`
	// Attachments are put beside the images in the same transaction.
	Attachments []Attachment `json:"attachments,omitempty"`
}

// A Tag is one tag that a publication moves.
type Tag struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
	// Source is the repository where the manifest was staged by digest; empty means Repository.
	Source string `json:"source,omitempty"`
	// Unique makes the tag create-only: it is refused if it exists with another digest, and from
	// then on it never moves.
	Unique bool `json:"unique,omitempty"`
}

// Published is the outcome for one tag of a publication.
type Published struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
	MediaType  string `json:"mediaType"`
	// Moved is false if the tag had this digest before.
	Moved bool `json:"moved"`
	// Attached are the digests of the manifests that were attached to the image, in order.
	Attached []string `json:"attached,omitempty"`
}

// RaiseFence refuses, from now on and durably, publications of a run by attempts below the given
// one. It creates the fence; a lower attempt than the fence's changes nothing.
func (s *Store) RaiseFence(ctx context.Context, run string, attempt int) error {
	if err := checkRun(run); err != nil {
		return err
	}
	if attempt < 0 {
		return fmt.Errorf("%w: attempt %d of run %s", ErrInvalid, attempt, run)
	}
	return s.write.do(ctx, func(t *tx) error {
		return t.exec(`INSERT INTO fence (run, attempt, created) VALUES (?, ?, ?)
			ON CONFLICT (run) DO UPDATE SET attempt = max(attempt, excluded.attempt)`, run, attempt, t.millis())
	})
}

// FinishRun removes a run's fence: whoever still works for the run publishes nothing any more. What
// the run staged needs no longer be kept. Finishing a run twice is harmless.
func (s *Store) FinishRun(ctx context.Context, run string) error {
	if err := checkRun(run); err != nil {
		return err
	}
	return s.write.do(ctx, func(t *tx) error {
		// The fence is what keeps a run's staging repository alive: a collector takes the staging
		// repositories that have none.
		if err := t.exec(`DELETE FROM publication WHERE run = ?`, run); err != nil {
			return err
		}
		return t.exec(`DELETE FROM fence WHERE run = ?`, run)
	})
}

// Fences lists the runs that have a fence, at most [MaxFences] of them, in the order of their IDs after the given one.
func (s *Store) Fences(ctx context.Context, after string) (runs []string, err error) {
	rows, err := s.rows(ctx, `SELECT run FROM fence WHERE run > ? ORDER BY run LIMIT ?`, after, MaxFences)
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		var run string
		err := rows.Scan(&run)
		runs = append(runs, run)
		return err
	})
	return runs, err
}

func checkRun(run string) error {
	if run == "" || len(run) > maxRunID {
		return fmt.Errorf("%w: run %q", ErrInvalid, clip(run))
	}
	for i := range len(run) {
		if c := run[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%w: run %q: an ID is lower-case letters, digits and -", ErrInvalid, run)
		}
	}
	return nil
}

// Publish moves all tags of a publication, or none. It fails with ErrFenced if the attempt is below
// the run's fence or the run has none, with ErrTagExists if a unique tag has another digest, and
// with ErrManifestUnknown if a manifest was not staged. Manifests, the children of indexes and all
// blobs become part of the tags' repositories, and attachments are stored beside them.
//
// Publishing again changes nothing. What a step has published under these tags in an earlier attempt of the
// run stays, also if it made another image in this one: the result then tells of the images of that time. So
// an attempt that was lost between its publication and its report neither moves a tag twice nor makes the
// run fail.
func (s *Store) Publish(ctx context.Context, p Publication) ([]Published, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	var out []Published
	err := s.write.do(ctx, func(t *tx) error {
		out = make([]Published, 0, len(p.Tags))
		if err := t.checkFence(p.Run, p.Attempt); err != nil {
			return err
		}
		done, err := t.published(p)
		if err != nil || done != nil {
			out = done
			return err
		}
		for _, tag := range p.Tags {
			done, err := t.publishTag(p, tag)
			if err != nil {
				return err
			}
			out = append(out, done)
		}
		if err := t.attachAll(p, out); err != nil {
			return err
		}
		return t.keepPublication(p, out)
	})
	if err != nil {
		return nil, fmt.Errorf("publish run %s: %w", p.Run, err)
	}
	return out, nil
}

// published returns what an earlier attempt of the run has published in this step under these tags, nil if that is
// nothing.
func (t *tx) published(p Publication) (out []Published, err error) {
	var result []byte
	ok, err := t.row(`SELECT result FROM publication WHERE run = ? AND step = ? AND tags = ? AND attempt < ?`,
		[]any{p.Run, p.Step, p.names(), p.Attempt}, &result)
	if err != nil || !ok {
		return nil, err
	}
	err = json.Unmarshal(result, &out)
	for i := range out {
		out[i].Moved = false
	}
	return out, err
}

// keepPublication remembers, until the run is finished, what was published.
func (t *tx) keepPublication(p Publication, out []Published) error {
	result, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO publication (run, step, tags, attempt, result) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (run, step, tags) DO UPDATE SET attempt = excluded.attempt, result = excluded.result`,
		p.Run, p.Step, p.names(), p.Attempt, result)
}

// names returns a short text that differs for other tags, or others' order.
func (p Publication) names() string {
	h := sha256.New()
	for _, tag := range p.Tags {
		fmt.Fprintf(h, "%s:%s\n", tag.Repository, tag.Tag)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (p Publication) check() error {
	if err := checkRun(p.Run); err != nil {
		return err
	}
	if len(p.Tags) == 0 || len(p.Tags) > maxPublication {
		return fmt.Errorf("%w: publication of run %s has %d tags, at least 1 and at most %d are accepted", ErrInvalid, p.Run, len(p.Tags), maxPublication)
	}
	if len(p.Step) > maxStepID {
		return fmt.Errorf("%w: publication of run %s: step ID of %d bytes, at most %d are accepted", ErrInvalid, p.Run, len(p.Step), maxStepID)
	}
	for _, tag := range p.Tags {
		if err := tag.check(); err != nil {
			return fmt.Errorf("publish run %s: %w", p.Run, err)
		}
	}
	if len(p.Attachments) > maxPublication {
		return fmt.Errorf("%w: publication of run %s has %d attachments, at most %d are accepted", ErrInvalid, p.Run, len(p.Attachments), maxPublication)
	}
	for _, a := range p.Attachments {
		if err := a.check(p.Tags); err != nil {
			return fmt.Errorf("publish run %s: %w", p.Run, err)
		}
	}
	return nil
}

func (tag Tag) check() error {
	if err := checkName(tag.Repository); err != nil {
		return err
	}
	if isReserved(tag.Repository) {
		return fmt.Errorf("%w: %q: repositories below %s are kiln's own", ErrInvalid, tag.Repository, reserved)
	}
	if tag.Source != "" {
		if err := checkName(tag.Source); err != nil {
			return err
		}
	}
	if err := checkTag(tag.Tag); err != nil {
		return err
	}
	_, err := parseDigest(tag.Digest)
	return err
}

func (t *tx) checkFence(run string, attempt int) error {
	var fence int
	ok, err := t.row(`SELECT attempt FROM fence WHERE run = ?`, []any{run}, &fence)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("%w: the run is over or has not begun", ErrFenced)
	case attempt < fence:
		return fmt.Errorf("%w: attempt %d was superseded by attempt %d", ErrFenced, attempt, fence)
	}
	return nil
}

func (t *tx) publishTag(p Publication, tag Tag) (Published, error) {
	to := target{repository: tag.Repository, digest: tag.Digest}
	var err error
	if to.repo, err = t.createRepository(tag.Repository); err != nil {
		return Published{}, err
	}
	from := to.repo
	if tag.Source != "" {
		if from, err = t.repository(tag.Source); err != nil {
			return Published{}, err
		}
	}
	if to.manifest, err = t.linkManifest(from, to.repo, tag.Digest, 0); err != nil {
		return Published{}, err
	}
	if to.manifest == 0 {
		source := tag.Source
		if source == "" {
			source = tag.Repository
		}
		return Published{}, fmt.Errorf("tag %s:%s: %w", tag.Repository, tag.Tag, manifestUnknown(source, tag.Digest))
	}
	if _, err := t.row(`SELECT media_type FROM manifest WHERE id = ?`, []any{to.manifest}, &to.mediaType); err != nil {
		return Published{}, err
	}
	moved, err := t.moveTag(tag.Tag, to, origin{run: p.Run, attempt: p.Attempt, step: p.Step, unique: tag.Unique})
	return Published{Repository: tag.Repository, Tag: tag.Tag, Digest: tag.Digest, MediaType: to.mediaType, Moved: moved}, err
}

// linkManifest makes a manifest of one repository, with its children and blobs, part of another. It
// returns the manifest's row there, 0 if neither has it.
func (t *tx) linkManifest(from, to int64, dgst string, depth int) (int64, error) {
	m, err := t.manifest(to, dgst)
	if err != nil || m != 0 {
		return m, err
	}
	src, err := t.manifest(from, dgst)
	if err != nil || src == 0 {
		return 0, err
	}
	if depth > maxDepth {
		return 0, fmt.Errorf("%w: %s: indexes are nested more than %d deep", ErrManifestInvalid, dgst, maxDepth)
	}
	children, err := t.strings(`SELECT child FROM manifest_child WHERE manifest = ?`, src)
	if err != nil {
		return 0, err
	}
	for _, c := range children {
		child, err := t.linkManifest(from, to, c, depth+1)
		if err != nil {
			return 0, err
		}
		if child == 0 {
			return 0, fmt.Errorf("%w: %s was deleted, but index %s needs it", ErrManifestUnknown, c, dgst)
		}
	}
	return t.copyManifest(src, to)
}

// copyManifest copies one manifest and links its blobs.
func (t *tx) copyManifest(src, to int64) (int64, error) {
	// A reference is counted at the link, so that comes first.
	err := t.exec(`INSERT INTO repo_blob (repo, blob, touched) SELECT ?, blob, ? FROM manifest_blob WHERE manifest = ?
		ON CONFLICT (repo, blob) DO UPDATE SET touched = excluded.touched`, to, t.millis(), src)
	if err != nil {
		return 0, err
	}
	m, err := t.insert(`INSERT INTO manifest (repo, digest, media_type, artifact_type, subject, annotations, size, content, pushed, touched, platform)
		SELECT ?, digest, media_type, artifact_type, subject, annotations, size, content, ?, ?, platform FROM manifest WHERE id = ?`,
		to, t.millis(), t.millis(), src)
	if err != nil {
		return 0, err
	}
	for _, q := range []string{
		`INSERT INTO manifest_body (manifest, body) SELECT ?, body FROM manifest_body WHERE manifest = ?`,
		`INSERT INTO manifest_blob (manifest, blob) SELECT ?, blob FROM manifest_blob WHERE manifest = ?`,
		`INSERT INTO manifest_child (manifest, child) SELECT ?, child FROM manifest_child WHERE manifest = ?`,
	} {
		if err := t.exec(q, m, src); err != nil {
			return 0, err
		}
	}
	return m, nil
}
