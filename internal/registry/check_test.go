package registry_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/registrytest"
)

func TestCheckFindsDamage(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	missing := strings.Repeat("m", 100<<10)
	damaged := strings.Repeat("d", 100<<10)
	tagImage(t, r, "a", "1", missing)
	tagImage(t, r, "a", "2", damaged)
	sound(t, r.Store)
	paths, err := filepath.Glob(filepath.Join(r.Dir, "blobs", "*", "*"))
	if err != nil || len(paths) != 2 {
		t.Fatal(paths, err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err == nil && b[0] == 'm' {
			err = os.Remove(p)
		} else if err == nil {
			b[1000] = 'x'
			err = os.WriteFile(p, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	orphan := filepath.Join(filepath.Dir(paths[0]), "orphan")
	err = errors.Join(os.WriteFile(orphan, []byte("x"), 0o600), os.Chtimes(orphan, time.Time{}, time.Now().Add(-2*time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(r.Dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`UPDATE repository SET tags = 17; DELETE FROM repo_blob WHERE blob = (SELECT id FROM blob WHERE size = 2)`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	found, err := r.Store.Check(t.Context(), false)
	if err != nil || found.OK() {
		t.Fatalf("Check = %+v, %v", found, err)
	}
	if len(found.Missing) != 1 || len(found.Damaged) != 1 || !strings.Contains(found.Damaged[0], "(a): its digest is") ||
		len(found.Orphaned) != 1 || len(found.Dangling) != 2 || len(found.Miscounted) == 0 {
		t.Errorf("Check = %+v", found)
	}
	if found, err = r.Store.Check(t.Context(), true); err != nil || len(found.Missing) != 1 || len(found.Damaged) != 0 {
		t.Errorf("quick Check = %+v, %v", found, err)
	}
}
