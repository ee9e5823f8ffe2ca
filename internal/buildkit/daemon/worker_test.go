package daemon

import "testing"

func TestLimitsOfTheCacheAreObeyed(t *testing.T) {
	cfg := Config{Root: t.TempDir(), Logger: quiet, GC: GC{MaxUsed: 3e9, MinFree: 1e9}}
	policy := gcPolicy(&cfg)
	if len(policy) == 0 {
		t.Fatal("no policy, want rules")
	}
	all := policy[len(policy)-1]
	if !all.All || all.MaxUsedSpace != 3e9 || all.MinFreeSpace != 1e9 || all.ReservedSpace > 3e9/2 {
		t.Errorf("last rule = %+v, want at most 3 GB used, 1 GB free and no more than half reserved", all)
	}
	if l, err := cfg.Limits(); err != nil || l.MaxUsed != 3e9 || l.MinFree != 1e9 || l.Reserved != all.ReservedSpace {
		t.Errorf("limits are %+v, %v, want those of the last rule", l, err)
	}
	cfg.GC = GC{}
	for _, rule := range gcPolicy(&cfg) {
		if rule.MaxUsedSpace <= 0 {
			t.Errorf("rule %+v has no limit, want BuildKit's default", rule)
		}
	}
}

func TestRegistriesAreSpokenToAsConfigured(t *testing.T) {
	got := registryConfig(map[string]Registry{
		"plain:5000":  {PlainHTTP: true},
		"127.0.0.1:1": {TrustedCerts: []string{"cert.pem"}},
		"docker.io":   {Mirrors: []string{"mirror:5000"}},
	})
	if c := got["plain:5000"]; c.PlainHTTP == nil || !*c.PlainHTTP {
		t.Errorf("plain:5000 = %+v, want HTTP", c)
	}
	if c := got["127.0.0.1:1"]; c.PlainHTTP == nil || *c.PlainHTTP || len(c.RootCAs) != 1 {
		t.Errorf("127.0.0.1:1 = %+v, want HTTPS", c)
	}
	if c := got["docker.io"]; c.PlainHTTP != nil || len(c.Mirrors) != 1 {
		t.Errorf("docker.io = %+v, want a mirror and the default scheme", c)
	}
}
