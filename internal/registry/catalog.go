package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
)

const repositoryColumns = `SELECT name, created, manifests, tags, untagged, bytes, own, locks, internal FROM repository `

// Catalog describes up to n repositories that hold a manifest, in the order of their names, those after the
// given one; all includes kiln's own.
func (s *Store) Catalog(ctx context.Context, all bool, after string, n int) (apiclient.Repositories, error) {
	out := apiclient.Repositories{Repositories: []apiclient.Repository{}}
	n = min(max(n, 1), apiclient.MaxImagePage)
	rows, err := s.rows(ctx, repositoryColumns+`WHERE name > ? AND manifests > 0 AND internal <= ? ORDER BY name LIMIT ?`, after, all, n+1)
	if err != nil {
		return out, err
	}
	err = each(rows, func() error {
		r, err := scanRepository(rows.Scan)
		out.Repositories = append(out.Repositories, r)
		return err
	})
	if err != nil {
		return out, err
	}
	if len(out.Repositories) > n {
		out.Repositories = out.Repositories[:n]
		out.Next = out.Repositories[n-1].Name
	}
	_, err = s.row(ctx, `SELECT blobs, bytes FROM total`, nil, &out.Total.Blobs, &out.Total.Size)
	return out, err
}

// Repository describes a repository.
func (s *Store) Repository(ctx context.Context, name string) (apiclient.Repository, error) {
	q, err := s.read.get(repositoryColumns + `WHERE name = ?`)
	if err != nil {
		return apiclient.Repository{}, s.readError(err)
	}
	r, err := scanRepository(q.QueryRowContext(ctx, name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return r, repositoryUnknown(name)
	}
	return r, s.readError(err)
}

func scanRepository(scan func(...any) error) (apiclient.Repository, error) {
	var r apiclient.Repository
	var created int64
	var l locks
	err := scan(&r.Name, &created, &r.Manifests, &r.Tags, &r.Untagged, &r.Size, &r.Unique, &l, &r.Internal)
	r.Created, r.Locks = moment(created), l.names()
	if !r.Internal {
		r.Shared = r.Size - r.Unique
	}
	return r, err
}

// moment is a stored time.
func moment(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// each calls f for each row, and closes the rows.
func each(rows *sql.Rows, f func() error) (err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return rows.Err()
}

// A ManifestQuery selects manifests of a repository.
type ManifestQuery struct {
	Repository string
	Oldest     bool   // first, instead of the newest
	Untagged   bool   // only those that nothing names
	After      string // Next of the page before
	N          int
}

// manifestColumns are what scanManifest reads. The tags are looked up for each row: a page has few. A CROSS JOIN
// is done in the order it is written in; otherwise all manifests of a repository might be looked through.
const manifestColumns = `SELECT m.id, m.digest, m.media_type, m.artifact_type, m.platform, m.size, m.content,
	m.subject, m.held, m.pushed, m.pulled, m.locks,
	(SELECT json_group_array(name) FROM (SELECT name FROM tag WHERE manifest = m.id ORDER BY name LIMIT ` + manifestTags + `)),
	(SELECT max(updated) FROM tag WHERE manifest = m.id),
	(SELECT sum(c.content) FROM manifest_child e CROSS JOIN manifest c ON c.repo = m.repo AND c.digest = e.child WHERE e.manifest = m.id)
	FROM manifest m `

const manifestTags = "100" // apiclient.MaxManifestTags

// manifestRow is a manifest with what is not told.
type manifestRow struct {
	apiclient.Manifest
	id       int64
	pushed   int64
	platform sql.NullString
}

// Manifests describes a page of the manifests of a repository, in the order of time.
func (s *Store) Manifests(ctx context.Context, q ManifestQuery) (apiclient.Manifests, error) {
	out := apiclient.Manifests{Manifests: []apiclient.Manifest{}}
	r, err := s.Repository(ctx, q.Repository)
	if err != nil {
		return out, err
	}
	at, id, err := q.place()
	if err != nil {
		return out, err
	}
	order, beyond := "DESC", "<"
	if q.Oldest {
		order, beyond = "ASC", ">"
	}
	filter := ""
	if q.Untagged {
		filter = ` AND m.held = 0 AND m.subject IS NULL`
	}
	n := min(max(q.N, 1), apiclient.MaxImagePage)
	rows, err := s.rows(ctx, manifestColumns+`WHERE m.repo = (SELECT id FROM repository WHERE name = ?)`+filter+
		` AND (m.pushed, m.id) `+beyond+` (?, ?) ORDER BY m.pushed `+order+`, m.id `+order+` LIMIT ?`, r.Name, at, id, n+1)
	if err != nil {
		return out, err
	}
	var list []manifestRow
	err = each(rows, func() error {
		m, err := s.scanManifest(rows)
		list = append(list, m)
		return err
	})
	if err != nil {
		return out, err
	}
	if len(list) > n {
		list = list[:n]
		out.Next = fmt.Sprintf("%d.%d", list[n-1].pushed, list[n-1].id)
	}
	if err := s.learnPlatforms(ctx, q.Repository, list); err != nil {
		return out, err
	}
	for _, m := range list {
		out.Manifests = append(out.Manifests, m.Manifest)
	}
	return out, nil
}

// place is where the page begins.
func (q ManifestQuery) place() (at, id int64, err error) {
	if q.After == "" {
		if q.Oldest {
			return 0, 0, nil
		}
		return 1 << 62, 0, nil
	}
	a, b, _ := strings.Cut(q.After, ".")
	at, err1 := strconv.ParseInt(a, 10, 64)
	id, err2 := strconv.ParseInt(b, 10, 64)
	if errors.Join(err1, err2) != nil {
		return 0, 0, fmt.Errorf("%w: after is %q: use the next of the page before", ErrInvalid, clip(q.After))
	}
	return at, id, nil
}

func (s *Store) scanManifest(rows *sql.Rows) (manifestRow, error) {
	var (
		m                apiclient.Manifest
		row              manifestRow
		subject, tags    sql.NullString
		updated, images  sql.NullInt64
		held, pulled, sz int64
		l                locks
	)
	err := rows.Scan(&row.id, &m.Digest, &m.MediaType, &m.ArtifactType, &row.platform, &m.Size, &sz, &subject, &held, &row.pushed, &pulled, &l,
		&tags, &updated, &images)
	if err != nil {
		return row, err
	}
	if err := json.Unmarshal([]byte(tags.String), &m.Tags); err != nil {
		return row, err
	}
	m.Timestamp, m.Updated = moment(row.pushed), moment(max(row.pushed, updated.Int64))
	m.LastPulled = moment(max(pulled, s.pulls.last(row.id)))
	m.ImageSize, m.Subject, m.Locks = sz+images.Int64, subject.String, l.names()
	m.Untagged = held == 0 && !subject.Valid
	row.Manifest = m
	return row, nil
}

// ManifestDetails describes the manifest that a tag or digest names.
func (s *Store) ManifestDetails(ctx context.Context, repository, ref string) (apiclient.ManifestDetails, error) {
	out := apiclient.ManifestDetails{Repository: repository, Blobs: []apiclient.Blob{}, Manifests: []string{}}
	if err := checkReference(ref); err != nil {
		return out, err
	}
	id, err := s.manifestRowOf(ctx, repository, ref)
	if err != nil {
		return out, err
	}
	rows, err := s.rows(ctx, manifestColumns+`WHERE m.id = ?`, id)
	if err != nil {
		return out, err
	}
	var list []manifestRow
	err = each(rows, func() error {
		m, err := s.scanManifest(rows)
		list = append(list, m)
		return err
	})
	if err == nil && len(list) == 0 {
		err = manifestUnknown(repository, ref)
	}
	if err == nil {
		err = s.learnPlatforms(ctx, repository, list)
	}
	if err != nil {
		return out, err
	}
	out.Manifest = list[0].Manifest
	err = s.surroundings(ctx, id, &out)
	return out, err
}

// manifestRowOf returns the row of the manifest that a tag or digest names, locked or not.
func (s *Store) manifestRowOf(ctx context.Context, repository, ref string) (id int64, err error) {
	from := byDigest + ` WHERE r.name = ? AND m.digest = ?`
	if !isDigest(ref) {
		from = byTag + ` WHERE r.name = ? AND t.name = ?`
	}
	ok, err := s.row(ctx, `SELECT m.id FROM repository r`+from, []any{repository, ref}, &id)
	if err == nil && !ok {
		err = manifestUnknown(repository, ref)
	}
	return id, err
}

// surroundings looks up what a manifest is made of and what is about it.
func (s *Store) surroundings(ctx context.Context, id int64, out *apiclient.ManifestDetails) error {
	rows, err := s.rows(ctx, `SELECT b.digest, b.size, (SELECT coalesce(sum(l.refs), 0) FROM repo_blob l JOIN repository r ON r.id = l.repo
			WHERE l.blob = b.id AND r.internal = 0) > 1
		FROM manifest_blob e JOIN blob b ON b.id = e.blob WHERE e.manifest = ? ORDER BY b.id`, id)
	if err != nil {
		return err
	}
	err = each(rows, func() error {
		var b apiclient.Blob
		err := rows.Scan(&b.Digest, &b.Size, &b.Shared)
		out.Blobs = append(out.Blobs, b)
		return err
	})
	if err != nil {
		return err
	}
	if rows, err = s.rows(ctx, `SELECT child FROM manifest_child WHERE manifest = ?`, id); err != nil {
		return err
	}
	children, err := collectStrings(rows)
	if err != nil {
		return err
	}
	out.Manifests = append(out.Manifests, children...)
	if rows, err = s.rows(ctx, `SELECT i.digest FROM manifest m CROSS JOIN manifest_child e ON e.child = m.digest
		CROSS JOIN manifest i ON i.id = e.manifest AND i.repo = m.repo WHERE m.id = ? LIMIT ?`, id, apiclient.MaxManifestTags); err != nil {
		return err
	}
	if out.Indexes, err = collectStrings(rows); err != nil {
		return err
	}
	_, err = s.row(ctx, `SELECT count(*) FROM manifest m JOIN manifest o ON o.repo = m.repo AND o.subject = m.digest WHERE m.id = ?`, []any{id}, &out.Referrers)
	if err != nil {
		return err
	}
	set, err := s.closure(ctx, id)
	if err != nil {
		return err
	}
	out.Frees, err = s.frees(ctx, set.ids(), 0)
	return err
}

// Referrers lists the first manifests about another one. An empty artifact type means all.
func (s *Store) Referrers(ctx context.Context, repository, ref, artifactType string) (apiclient.Referrers, error) {
	out := apiclient.Referrers{Referrers: []apiclient.Referrer{}}
	d, err := s.Resolve(ctx, repository, ref)
	if err != nil {
		return out, err
	}
	list, _, err := s.referrers(ctx, repository, d.Digest, artifactType, 0)
	for _, r := range list {
		out.Referrers = append(out.Referrers, apiclient.Referrer{Digest: r.Digest, MediaType: r.MediaType, ArtifactType: r.ArtifactType,
			Size: r.Size, Annotations: r.Annotations})
	}
	return out, err
}
