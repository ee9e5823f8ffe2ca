package main

import (
	"encoding/json"
	"strings"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// cache returns what the server's build daemon keeps.
func (s *server) cache(filters ...string) apiclient.Cache {
	s.t.Helper()
	args := []string{"cache", "show", "-o", "json"}
	for _, f := range filters {
		args = append(args, "--filter", f)
	}
	var found apiclient.Cache
	if err := json.Unmarshal([]byte(s.must(args...)), &found); err != nil {
		s.t.Fatal(err)
	}
	return found
}

// testCache prunes what one build has left, while a run is at work.
func testCache(t *testing.T, s *server) {
	const marker = "cache-marker-7361"
	id, _, wait := slowRun(t, s)
	dir := files(t, map[string]string{"Dockerfile": base + "RUN echo " + marker + " > /m && head -c 3000000 /dev/zero > /big\n"})
	s.must("build", dir)
	found := s.cache("description~=" + marker)
	if len(found.Records) != 1 || found.Records[0].Size < 3e6 || found.Records[0].Kind != "regular" || found.Limits.MaxUsed == 0 {
		t.Fatalf("the cache has %+v", found)
	}
	if table := s.must("cache", "show", "-a", "--filter", "description~="+marker); !strings.Contains(table, marker) || !strings.Contains(table, "RECLAIMABLE") {
		t.Errorf("kiln cache show -a printed\n%s", table)
	}
	if out := s.must("cache", "prune", "--filter", "description~="+marker, "--keep-storage", "1TB"); !strings.HasPrefix(out, "0 records") {
		t.Errorf("prune that may keep 1TB: %s", out)
	}
	if out := s.must("cache", "prune", "--filter", "description~="+marker); !strings.HasPrefix(out, "1 records removed, 3.") {
		t.Errorf("prune: %s", out)
	}
	if left := s.cache("description~=" + marker); len(left.Records) != 0 {
		t.Errorf("the cache still has %+v", left.Records)
	}
	s.must("cache", "prune", "--all", "--filter", "type==exec.cachemount") // not those of the run, which are in use
	if code := wait(); code != 0 {
		t.Errorf("the run that was at work ended with %d: %s", code, s.show(id).Reason)
	}
	if r := s.kiln("cache", "show", "--filter", "size is large"); r.code == 0 || !strings.Contains(r.err, "type==regular") {
		t.Errorf("bad filter: exit code %d\n%s", r.code, r.err)
	}
	if r := s.show(id); r.State != run.Succeeded || r.Attempt != 1 {
		t.Errorf("the run is %s after attempt %d", r.State, r.Attempt)
	}
}
