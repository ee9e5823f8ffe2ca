package taskspec

import (
	"testing"

	"github.com/distribution/reference"
)

// FuzzPlainReference checks that the references understood without the library mean the same to it.
func FuzzPlainReference(f *testing.F) {
	for _, s := range []string{
		"a", "a:1", "a/b", "a.b/c", "localhost/a", "localhost:5000/a:1", "docker.io/a", "index.docker.io/a", "a_b", "a__b", "a--b",
		"A/b", "a/B", "a:", ":a", "a//b", "a:1:2", "a.b:x/c", "-a/b", "a-/b.c/d", "a@sha256:" + "0", "a:-1", "a:_1", "a/b:c/d", "0.0.0.0:1/a:b.c-d_e",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, tagged, ok := plainReference(ref)
		if !ok {
			return
		}
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil || named.String() != full || reference.IsNameOnly(named) == tagged {
			t.Errorf("plainReference(%q) = %q, %v; the library says %v, %v", ref, full, tagged, named, err)
		}
	})
}
