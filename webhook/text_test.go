package webhook

import "testing"

func TestCloneURLsCarryNoCredentials(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://jane:token@git.example.com/a/b.git?x=1#y": "https://git.example.com/a/b.git",
		"HTTPS://token@git.example.com/a.git":              "https://git.example.com/a.git",
		"ssh://git:pw@git.example.com:7999/a/b.git":        "ssh://git@git.example.com:7999/a/b.git",
		"git://git.example.com/a.git":                      "git://git.example.com/a.git",
		"git@git.example.com:a/b.git":                      "git@git.example.com:a/b.git",
		"https://u:p%zz@git.example.com/a.git":             "",
		" https://u:p@git.example.com/a.git":               "",
		"file:///etc/passwd":                               "",
		"/srv/git/a.git":                                   "",
		"ext::sh -c true":                                  "",
		"javascript:alert(1)":                              "",
		"":                                                 "",
	} {
		got := ""
		if l := links(given); len(l) == 1 {
			got = l[0]
		}
		if got != want {
			t.Errorf("links(%q) = %q, want %q", given, got, want)
		}
	}
}
