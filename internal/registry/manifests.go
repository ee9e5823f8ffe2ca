package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A Manifest is a stored manifest or index.
type Manifest struct {
	Descriptor
	Body   []byte
	Pushed time.Time // into this repository, first

	row int64
}

// put is one push of a manifest.
type put struct {
	repository string
	tags       []string
	digest     string // that the body must have; empty for any
	mediaType  string
	body       []byte
}

// PutManifest stores a manifest in a repository and, if tag is not empty, moves the tag to it. It
// returns the sha256 digest. Everything the manifest refers to must be in the repository, or the
// error is ErrReferenceMissing; a subject need not exist.
func (s *Store) PutManifest(ctx context.Context, repository, tag, mediaType string, body []byte) (string, error) {
	p := put{repository: repository, mediaType: mediaType, body: body}
	if tag != "" {
		p.tags = []string{tag}
	}
	d, _, err := s.putManifest(ctx, p)
	return d, err
}

// putManifest stores a manifest and returns its digest and what it says.
func (s *Store) putManifest(ctx context.Context, p put) (string, *document, error) {
	if err := checkName(p.repository); err != nil {
		return "", nil, err
	}
	for _, tag := range p.tags {
		if err := checkTag(tag); err != nil {
			return "", nil, err
		}
	}
	doc, err := parseManifest(p.mediaType, p.body)
	if err != nil {
		return "", nil, err
	}
	dgst, err := digestOf(p.body, p.digest)
	if err != nil {
		return "", nil, err
	}
	err = s.write.do(ctx, func(t *tx) error {
		repo, err := t.createRepository(p.repository)
		if err != nil {
			return err
		}
		m, err := t.manifest(repo, dgst)
		if err != nil {
			return err
		}
		isNew := m == 0
		if isNew {
			if m, err = t.insertManifest(repo, dgst, doc, p.body); err != nil {
				return err
			}
		} else if err := t.exec(`UPDATE manifest SET touched = ? WHERE id = ?`, t.millis(), m); err != nil {
			return err
		}
		to := target{repository: p.repository, repo: repo, manifest: m, digest: dgst, mediaType: doc.MediaType}
		for _, tag := range p.tags {
			if _, err := t.moveTag(tag, to, origin{}); err != nil {
				return err
			}
		}
		if isNew && len(p.tags) == 0 && doc.Subject == nil { // what is said about an image is no image
			return t.record(OutboxEvent{Type: ImagePushed, Repository: p.repository, Digest: dgst, MediaType: doc.MediaType})
		}
		return nil
	})
	if err != nil {
		return "", nil, fmt.Errorf("put manifest %s@%s: %w", p.repository, dgst, err)
	}
	return dgst, doc, nil
}

// manifest returns the row of a manifest, 0 if the repository does not have it.
func (t *tx) manifest(repo int64, dgst string) (int64, error) {
	var id int64
	_, err := t.row(`SELECT id FROM manifest WHERE repo = ? AND digest = ?`, []any{repo, dgst}, &id)
	return id, err
}

func (t *tx) insertManifest(repo int64, dgst string, doc *document, body []byte) (int64, error) {
	var subject, annotations any
	if doc.Subject != nil {
		b, err := json.Marshal(doc.Annotations)
		if err != nil {
			return 0, err
		}
		subject, annotations = doc.Subject.Digest, string(b)
	}
	var content int64
	for _, l := range doc.blobs() {
		content += l.Size
	}
	m, err := t.insert(`INSERT INTO manifest (repo, digest, media_type, artifact_type, subject, annotations, size, content, pushed, touched)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		repo, dgst, doc.MediaType, doc.artifactType(), subject, annotations, len(body), content, t.millis(), t.millis())
	if err != nil {
		return 0, err
	}
	if err := t.exec(`INSERT INTO manifest_body (manifest, body) VALUES (?, ?)`, m, body); err != nil {
		return 0, err
	}
	for _, l := range doc.blobs() {
		if err := t.referBlob(repo, m, l); err != nil {
			return 0, err
		}
	}
	for _, l := range doc.Manifests {
		if err := t.referChild(repo, m, l); err != nil {
			return 0, err
		}
	}
	return m, nil
}

// referBlob notes that a manifest needs a blob, which must be in its repository.
func (t *tx) referBlob(repo, manifest int64, l link) error {
	var blob int64
	ok, err := t.row(`SELECT b.id FROM blob b JOIN repo_blob l ON l.blob = b.id AND l.repo = ?
		WHERE b.digest = ?`, []any{repo, l.Digest}, &blob)
	if err != nil {
		return err
	}
	if !ok {
		if l.elsewhere() {
			return nil
		}
		return fmt.Errorf("%w: blob %s: push it first", ErrReferenceMissing, l.Digest)
	}
	return t.exec(`INSERT INTO manifest_blob (manifest, blob) VALUES (?, ?) ON CONFLICT DO NOTHING`, manifest, blob)
}

// referChild notes that an index needs a manifest, which must be in its repository. Some build
// caches are indexes of layers, so a blob will do.
func (t *tx) referChild(repo, manifest int64, l link) error {
	child, err := t.manifest(repo, l.Digest)
	if err != nil {
		return err
	}
	if child == 0 {
		return t.referBlob(repo, manifest, l)
	}
	return t.exec(`INSERT INTO manifest_child (manifest, child) VALUES (?, ?) ON CONFLICT DO NOTHING`, manifest, l.Digest)
}

// found is what a lookup of a manifest yields.
type found struct {
	id       int64
	d        Descriptor
	pushed   int64
	touched  int64
	internal bool
	locks    locks
	body     []byte
}

const (
	foundColumns = `SELECT m.id, m.media_type, m.digest, m.size, m.pushed, m.touched, r.internal, r.locks | m.locks`
	byDigest     = ` JOIN manifest m ON m.repo = r.id`
	byTag        = ` JOIN tag t ON t.repo = r.id JOIN manifest m ON m.id = t.manifest`
)

// find looks up the manifest that ref, a tag or a digest, names. In kiln's own repositories that renews
// its lease: whoever looks is going to use it.
func (s *Store) find(ctx context.Context, repository, ref string, body bool) (found, error) {
	var f found
	query, from, where := foundColumns, ` FROM repository r`+byDigest, ` WHERE r.name = ? AND m.digest = ?`
	if !isDigest(ref) {
		query, from, where = foundColumns+` | t.locks`, ` FROM repository r`+byTag, ` WHERE r.name = ? AND t.name = ?`
	}
	dest := []any{&f.id, &f.d.MediaType, &f.d.Digest, &f.d.Size, &f.pushed, &f.touched, &f.internal, &f.locks}
	if body {
		query, from, dest = query+`, b.body`, from+` JOIN manifest_body b ON b.manifest = m.id`, append(dest, &f.body)
	}
	ok, err := s.row(ctx, query+from+where, []any{repository, ref}, dest...)
	switch {
	case err != nil:
		return f, err
	case !ok:
		return f, manifestUnknown(repository, ref)
	case f.internal && time.Since(time.UnixMilli(f.touched)) > s.renewal():
		return f, s.renew(ctx, repository, ref, f.id)
	}
	return f, f.locks.locked(lockRead, imageName(repository, ref))
}

// renew renews the lease of a manifest.
func (s *Store) renew(ctx context.Context, repository, ref string, id int64) error {
	err := s.write.do(ctx, func(t *tx) error {
		n, err := t.change(`UPDATE manifest SET touched = ? WHERE id = ?`, t.millis(), id)
		if err == nil && n == 0 {
			return manifestUnknown(repository, ref) // collected meanwhile
		}
		return err
	})
	if errors.Is(err, ErrDiskFull) {
		return nil // reading goes on
	}
	return err
}

// Manifest returns the manifest that ref, a tag or a digest, names.
func (s *Store) Manifest(ctx context.Context, repository, ref string) (Manifest, error) {
	f, err := s.find(ctx, repository, ref, true)
	return Manifest{Descriptor: f.d, Body: f.body, Pushed: time.UnixMilli(f.pushed).UTC(), row: f.id}, err
}

// Resolve returns the descriptor of the manifest that ref, a tag or a digest, names.
func (s *Store) Resolve(ctx context.Context, repository, ref string) (Descriptor, error) {
	f, err := s.find(ctx, repository, ref, false)
	return f.d, err
}

func manifestUnknown(repository, ref string) error {
	return fmt.Errorf("%w: %s", ErrManifestUnknown, imageName(repository, clip(ref)))
}

// imageName names what ref, a tag or a digest, means in a repository.
func imageName(repository, ref string) string {
	if isDigest(ref) {
		return repository + "@" + ref
	}
	return repository + ":" + ref
}

// DeleteManifest deletes a manifest and its tags. A unique tag of a run, or a lock, refuses it, and so does
// an index that needs the manifest.
func (s *Store) DeleteManifest(ctx context.Context, repository, dgst string) error {
	return s.write.do(ctx, func(t *tx) error {
		to := target{repository: repository, digest: dgst}
		var held int
		ok, err := t.row(`SELECT r.id, m.id, m.media_type, m.held, r.locks | m.locks
			FROM repository r JOIN manifest m ON m.repo = r.id
			WHERE r.name = ? AND m.digest = ?`, []any{repository, dgst}, &to.repo, &to.manifest, &to.mediaType, &held, &to.locks)
		if err != nil {
			return err
		}
		if !ok {
			return manifestUnknown(repository, dgst)
		}
		tags, err := t.strings(`SELECT name FROM tag WHERE manifest = ?`, to.manifest)
		if err != nil {
			return err
		}
		if held > len(tags) {
			return fmt.Errorf("%w: manifest %s by an index of %s: delete the index first", errReferenced, dgst, repository)
		}
		for _, tag := range tags {
			if err := t.removeTag(tag, to, false); err != nil {
				return err
			}
		}
		return t.dropManifest(to)
	})
}

// dropManifest deletes a manifest that nothing holds.
func (t *tx) dropManifest(to target) error {
	if err := to.locks.locked(keeps, imageName(to.repository, to.digest)); err != nil {
		return err
	}
	// The event tells of what is still here.
	if err := t.record(OutboxEvent{Type: ImageDeleted, Repository: to.repository, Digest: to.digest, MediaType: to.mediaType}); err != nil {
		return err
	}
	return t.deleteManifest(to.manifest)
}

func (t *tx) deleteManifest(m int64) error {
	for _, q := range []string{
		`DELETE FROM manifest_body WHERE manifest = ?`,
		`DELETE FROM manifest_blob WHERE manifest = ?`,
		`DELETE FROM manifest_child WHERE manifest = ?`,
		`DELETE FROM manifest WHERE id = ?`,
	} {
		if err := t.exec(q, m); err != nil {
			return err
		}
	}
	return nil
}
