package registry

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"kiln/internal/apiclient"
)

const (
	maxPurgeFilters = 32
	maxPurgeFilter  = 512 // bytes of one
)

// A purgeFilter selects tags.
type purgeFilter struct{ repository, tag *regexp.Regexp }

// parseFilters reads REPOSITORY:TAG, both RE2, whose matching takes linear time. A colon in an expression
// is none that separates if it comes later.
func parseFilters(filters []string) ([]purgeFilter, error) {
	if len(filters) == 0 || len(filters) > maxPurgeFilters {
		return nil, fmt.Errorf("%w: %d filters, want 1 to %d", ErrInvalid, len(filters), maxPurgeFilters)
	}
	var out []purgeFilter
	for _, f := range filters {
		repository, tag, ok := strings.Cut(f, ":")
		if !ok || repository == "" || tag == "" || len(f) > maxPurgeFilter {
			return nil, fmt.Errorf("%w: filter %q: want REPOSITORY:TAG, such as app:^pr-, of at most %d bytes", ErrInvalid, clip(f), maxPurgeFilter)
		}
		name, err1 := regexp.Compile("^(?:" + repository + ")$")
		match, err2 := regexp.Compile(tag)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%w: filter %q: %w", ErrInvalid, clip(f), err)
		}
		out = append(out, purgeFilter{name, match})
	}
	return out, nil
}

// CheckPurge reports what is wrong with a purge.
func CheckPurge(p apiclient.Purge) error {
	if p.Ago < 0 || p.Keep < 0 {
		return fmt.Errorf("%w: ago %s, keep %d: must not be negative", ErrInvalid, p.Ago, p.Keep)
	}
	_, err := parseFilters(p.Filters)
	return err
}

// purgeTag is a tag that is to be deleted.
type purgeTag struct {
	name     string
	manifest int64
}

// purge is one purge of a repository after the other.
type purge struct {
	s       *Store
	p       apiclient.Purge
	filters []purgeFilter
	needed  map[string]bool
	may     func(repository string) bool
	before  int64 // Unix milliseconds: what is younger stays
	out     apiclient.Purged
}

// Purge deletes old tags that one of the filters matches and, if asked, old manifests that nothing names,
// also those that lose their last tag by it. It deletes nothing that is locked, and no manifest whose digest
// is needed, nor its tags. Unique tags are retired. A dry run tells what would be deleted.
func (s *Store) Purge(ctx context.Context, p apiclient.Purge, needed map[string]bool) (apiclient.Purged, error) {
	return s.PurgeWithin(ctx, p, needed, func(string) bool { return true })
}

// PurgeWithin is Purge for somebody who may purge some repositories alone. Others that a filter matches are named
// in the outcome.
func (s *Store) PurgeWithin(ctx context.Context, p apiclient.Purge, needed map[string]bool, may func(repository string) bool) (apiclient.Purged, error) {
	filters, err := parseFilters(p.Filters)
	if err == nil {
		err = CheckPurge(p)
	}
	out := apiclient.Purged{Deletion: apiclient.Deletion{Manifests: []apiclient.DeletedManifest{}, DryRun: p.DryRun}, Untagged: []string{}}
	if err != nil {
		return out, err
	}
	u := &purge{s: s, p: p, filters: filters, needed: needed, may: may, before: time.Now().Add(-p.Ago).UnixMilli(), out: out}
	for after, more := "", true; more; more = after != "" {
		page, err := s.Catalog(ctx, false, after, apiclient.MaxImagePage)
		if err != nil {
			return u.out, err
		}
		for _, r := range page.Repositories {
			if err := u.repository(ctx, r.Name); err != nil {
				return u.out, fmt.Errorf("purge %s: %w", r.Name, err)
			}
		}
		after = page.Next
	}
	return u.out, nil
}

// matches reports whether the filters are about a repository and, unless it is empty, about a tag.
func (u *purge) matches(repository, tag string) bool {
	for _, f := range u.filters {
		if f.repository.MatchString(repository) && (tag == "" || f.tag.MatchString(tag)) {
			return true
		}
	}
	return false
}

func (u *purge) repository(ctx context.Context, name string) error {
	if !u.matches(name, "") {
		return nil
	}
	if !u.may(name) {
		if len(u.out.Refused) < apiclient.MaxDeletedListed {
			u.out.Refused = append(u.out.Refused, name)
		}
		return nil
	}
	tags, err := u.tags(ctx, name)
	if err != nil {
		return err
	}
	doomed, err := u.manifests(ctx, name, tags)
	if err != nil {
		return err
	}
	if err := u.tell(ctx, name, tags, doomed); err != nil || u.p.DryRun {
		return err
	}
	for len(tags) > 0 {
		n := min(len(tags), deleteBatch)
		if err := u.s.gently(ctx, func(t *tx) error { return u.untag(t, name, tags[:n]) }); err != nil {
			return err
		}
		tags = tags[n:]
	}
	for _, id := range doomed {
		if err := u.s.gently(ctx, func(t *tx) error { return u.deleteUntagged(t, name, id) }); err != nil {
			return err
		}
	}
	return nil
}

// tags returns the tags of a repository that are to be deleted.
func (u *purge) tags(ctx context.Context, name string) (out []purgeTag, err error) {
	rows, err := u.s.rows(ctx, `SELECT t.name, m.id, m.digest, t.updated, r.locks | m.locks | t.locks FROM repository r
		JOIN tag t ON t.repo = r.id JOIN manifest m ON m.id = t.manifest WHERE r.name = ? ORDER BY t.updated DESC, t.name`, name)
	if err != nil {
		return nil, err
	}
	newest := 0
	err = each(rows, func() error {
		var t purgeTag
		var digest string
		var updated int64
		var l locks
		if err := rows.Scan(&t.name, &t.manifest, &digest, &updated, &l); err != nil {
			return err
		}
		switch {
		case updated >= u.before || !u.matches(name, t.name):
		case l&keeps != 0 || u.needed[digest]:
			u.out.Kept++
		case newest < u.p.Keep:
			newest++
			u.out.Kept++
		default:
			out = append(out, t)
		}
		return nil
	})
	return out, err
}

// manifests returns the manifests that are to be deleted when the tags are gone.
func (u *purge) manifests(ctx context.Context, name string, tags []purgeTag) (out []int64, err error) {
	if !u.p.Untagged {
		return nil, nil
	}
	lost := map[int64]int{}
	for _, t := range tags {
		lost[t.manifest]++
	}
	rows, err := u.s.rows(ctx, `SELECT m.id, m.digest, m.held, m.touched, r.locks | m.locks FROM repository r JOIN manifest m ON m.repo = r.id
		WHERE r.name = ? AND m.subject IS NULL ORDER BY m.id DESC`, name)
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		var id, touched int64
		var digest string
		var held int
		var l locks
		if err := rows.Scan(&id, &digest, &held, &touched, &l); err != nil {
			return err
		}
		switch {
		case held > lost[id] || held == 0 && touched >= u.before:
		case l&keeps != 0 || u.needed[digest]:
			u.out.Kept++
		default:
			out = append(out, id)
		}
		return nil
	})
	return out, err
}

// tell describes what is deleted from a repository.
func (u *purge) tell(ctx context.Context, name string, tags []purgeTag, doomed []int64) error {
	var set doomedManifests
	in := map[int64]bool{}
	for _, id := range doomed {
		belonging, err := u.s.closure(ctx, id)
		if err != nil {
			return err
		}
		belonging[0].why = "untagged"
		for _, d := range belonging {
			if !in[d.id] {
				in[d.id] = true
				set = append(set, d)
			}
		}
	}
	freed, err := u.s.frees(ctx, set.ids(), 0)
	if err != nil {
		return err
	}
	d, err := u.s.describe(ctx, name, set)
	if err != nil {
		return err
	}
	u.out.Frees += freed
	u.out.Count += d.Count
	u.out.Tags += int64(len(tags))
	room := max(0, apiclient.MaxDeletedListed-len(u.out.Manifests))
	u.out.Manifests = append(u.out.Manifests, d.Manifests[:min(room, len(d.Manifests))]...)
	for _, t := range tags {
		if !in[t.manifest] && len(u.out.Untagged) < apiclient.MaxDeletedListed {
			u.out.Untagged = append(u.out.Untagged, imageName(name, t.name))
		}
	}
	return nil
}

// untag deletes tags, unless they have moved or were locked meanwhile.
func (u *purge) untag(t *tx, repository string, tags []purgeTag) error {
	for _, tag := range tags {
		to := target{repository: repository, manifest: tag.manifest}
		ok, err := t.row(`SELECT r.id, r.locks | m.locks | t.locks, m.digest, m.media_type FROM repository r JOIN tag t ON t.repo = r.id
			JOIN manifest m ON m.id = t.manifest WHERE r.name = ? AND t.name = ? AND m.id = ? AND t.updated < ?`,
			[]any{repository, tag.name, tag.manifest, u.before}, &to.repo, &to.locks, &to.digest, &to.mediaType)
		if err != nil {
			return err
		}
		if !ok || to.locks&keeps != 0 {
			continue
		}
		if err := t.removeTag(tag.name, to, true); err != nil {
			return err
		}
	}
	return nil
}

// deleteUntagged deletes a manifest that nothing names with what belongs to it, unless it was used or locked
// meanwhile or some of it is needed.
func (u *purge) deleteUntagged(t *tx, repository string, id int64) error {
	still, err := t.row(`SELECT 1 FROM manifest WHERE id = ? AND held = 0 AND touched < ?`, []any{id, u.before}, new(int))
	if err != nil || !still {
		return err
	}
	set, err := t.st.closure(context.Background(), id)
	if err != nil {
		return err
	}
	for _, d := range set {
		locked, err := t.row(`SELECT 1 FROM manifest m JOIN repository r ON r.id = m.repo WHERE m.id = ? AND (m.locks | r.locks) & ? <> 0`, []any{d.id, keeps}, new(int))
		if err != nil || locked || u.needed[d.digest] {
			return err
		}
	}
	for _, d := range set {
		if err := t.deleteWithTags(repository, d.id); err != nil {
			return err
		}
	}
	return nil
}
