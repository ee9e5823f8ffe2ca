package triggers

import "testing"

func TestRepositoryKey(t *testing.T) {
	t.Parallel()
	for want, locations := range map[string][]string{
		"github.com/o/r": {"https://github.com/o/r.git", "https://GitHub.com/O/r", "http://github.com:80/o/r/", "git@github.com:o/r.git",
			"ssh://git@github.com:22/o/r.git", "github.com/o/r", "https://user@github.com:443/o/r.git"},
		"git.example:3000/o/r":     {"http://git.example:3000/o/r.git"},
		"git.example/g/s/r":        {"ssh://git@git.example:2222/g/s/r.git", "https://git.example/g/s/r"},
		"dev.azure.com/o/p/_git/r": {"https://o@dev.azure.com/o/p/_git/r", "git@ssh.dev.azure.com:v3/o/p/r"},
		"":                         {"", "::", "/a/path"},
	} {
		for _, location := range locations {
			if got := repositoryKey(location); got != want {
				t.Errorf("repositoryKey(%q) = %q, want %q", location, got, want)
			}
		}
	}
}
