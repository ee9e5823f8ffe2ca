package registry

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// TestMigrationCounts opens a directory of the first version, in which nothing was counted.
func TestMigrationCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := openDB(filepath.Join(dir, "registry.db"), 1, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(schemaV1 + `
		INSERT INTO repository (id, name, created) VALUES (1, 'a', 1), (2, 'b', 1), (3, 'kiln/staging/a', 1);
		INSERT INTO blob (id, digest, size, created) VALUES (1, 'sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae', 3, 1),
			(2, 'sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9', 3, 1);
		INSERT INTO blob_data (blob, data) VALUES (1, 'foo'), (2, 'bar');
		INSERT INTO repo_blob (repo, blob, touched) VALUES (1, 1, 1), (1, 2, 1), (2, 1, 1), (3, 2, 1);
		INSERT INTO manifest (id, repo, digest, media_type, artifact_type, subject, size, content, pushed, touched) VALUES
			(1, 1, 'sha256:one', 'm', '', NULL, 1, 6, 1, 1), (2, 1, 'sha256:index', 'i', '', NULL, 1, 0, 1, 1),
			(3, 1, 'sha256:note', 'm', '', 'sha256:one', 1, 3, 1, 1), (4, 2, 'sha256:lone', 'm', '', NULL, 1, 3, 1, 1);
		INSERT INTO manifest_blob (manifest, blob) VALUES (1, 1), (1, 2), (3, 2), (4, 1);
		INSERT INTO manifest_child (manifest, child) VALUES (2, 'sha256:one');
		INSERT INTO tag (repo, name, manifest, protected, created, updated) VALUES (1, 't', 2, 0, 1, 1);
		PRAGMA user_version = 1;`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Check(t.Context(), false)
	if err != nil || len(found.Miscounted)+len(found.Dangling) > 0 || len(found.Missing) != 4 { // the manifests have no bodies
		t.Errorf("Check = %+v, %v", found, err)
	}
	r, err := s.Repository(t.Context(), "a")
	if err != nil || r.Manifests != 3 || r.Tags != 1 || r.Untagged != 0 || r.Size != 6 || r.Unique != 3 {
		t.Errorf("Repository = %+v, %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNewerMetadataIsRefused opens a directory that a later version has written, and leaves it as it is.
func TestNewerMetadataIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := openDB(filepath.Join(dir, "registry.db"), 1, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`CREATE TABLE later (id INTEGER); PRAGMA user_version = 99`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Reserve: -1}); err == nil || !strings.Contains(err.Error(), "schema version 99 is newer than 4") {
		t.Errorf("Open = %v", err)
	}
	db, err = openDB(filepath.Join(dir, "registry.db"), 1, 1024)
	if err != nil {
		t.Fatal(err)
	}
	var tables, version int
	err = errors.Join(db.QueryRow(`SELECT count(*) FROM sqlite_master`).Scan(&tables), db.QueryRow(`PRAGMA user_version`).Scan(&version), db.Close())
	if err != nil || tables != 1 || version != 99 {
		t.Errorf("after that %d tables, version %d, %v", tables, version, err)
	}
}
