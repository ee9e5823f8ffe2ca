package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
)

const (
	maxConfigRead = 4 << 20 // bytes of a configuration that is read for its platform
	maxPlatforms  = 64      // of an index
)

// platform is how manifests and configurations name what an image runs on.
type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	if p.OS == "" || p.Architecture == "" {
		return ""
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return clip(s)
}

// learnPlatforms fills in what the manifests run on. What is not known yet is read from their
// configurations, once: a push does not pay for it.
func (s *Store) learnPlatforms(ctx context.Context, repository string, list []manifestRow) error {
	learned := map[int64]string{}
	for i := range list {
		m := &list[i]
		if !m.platform.Valid {
			p, err := s.platformOf(ctx, repository, m.Digest)
			if errors.Is(err, ErrManifestUnknown) || errors.Is(err, ErrLocked) {
				continue
			}
			if err != nil {
				return err
			}
			m.platform = sql.NullString{String: p, Valid: true}
			learned[m.id] = p
		}
		if m.platform.String != "" {
			m.Platforms = strings.Split(m.platform.String, ",")
		}
	}
	if len(learned) == 0 {
		return nil
	}
	err := s.write.do(ctx, func(t *tx) error {
		for id, p := range learned {
			if err := t.exec(`UPDATE manifest SET platform = ? WHERE id = ?`, p, id); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrDiskFull) {
		return nil // reading goes on
	}
	return err
}

// platformOf reads the platforms of a manifest, separated by commas; empty if it has none.
func (s *Store) platformOf(ctx context.Context, repository, dgst string) (string, error) {
	m, err := s.Manifest(ctx, repository, dgst)
	if err != nil {
		return "", err
	}
	var doc struct {
		Config    *link `json:"config"`
		Manifests []struct {
			Platform platform `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(m.Body, &doc); err != nil {
		return "", nil // accepted by an earlier version; it has no platform
	}
	if doc.Config == nil {
		var names []string
		for _, c := range doc.Manifests {
			// What builders add about an image has the platform unknown/unknown.
			if p := c.Platform.String(); p != "" && c.Platform.OS != "unknown" && len(names) < maxPlatforms {
				names = append(names, p)
			}
		}
		return strings.Join(names, ","), nil
	}
	if doc.Config.Size > maxConfigRead {
		return "", nil
	}
	r, _, err := s.BlobReader(ctx, repository, doc.Config.Digest)
	if errors.Is(err, ErrBlobUnknown) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }() // it was only read
	var p platform
	if json.NewDecoder(r).Decode(&p) != nil {
		return "", nil // not the configuration of an image
	}
	return p.String(), nil
}
