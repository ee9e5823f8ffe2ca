package git

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"kiln/internal/netguard"
)

func TestParseContext(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want Context
	}{
		{"https://github.com/o/r.git", Context{Kind: KindGit, URL: "https://github.com/o/r.git"}},
		{"https://GitHub.com:443/o/r.git#main", Context{Kind: KindGit, URL: "https://github.com/o/r.git", Ref: "main"}},
		{"https://github.com/o/r.git#main:src/app", Context{Kind: KindGit, URL: "https://github.com/o/r.git", Ref: "main", Subdir: "src/app"}},
		{"https://github.com/o/r.git#:dir/", Context{Kind: KindGit, URL: "https://github.com/o/r.git", Subdir: "dir"}},
		{"https://github.com/o/r.git#", Context{Kind: KindGit, URL: "https://github.com/o/r.git"}},
		{"https://github.com/o/r.git#pull/7/head:/x", Context{Kind: KindGit, URL: "https://github.com/o/r.git", Ref: "pull/7/head", Subdir: "x"}},
		{"http://h:8080/r.git", Context{Kind: KindGit, URL: "http://h:8080/r.git"}},
		{"github.com/o/r", Context{Kind: KindGit, URL: "https://github.com/o/r"}},
		{"github.com/o/r#v1:a", Context{Kind: KindGit, URL: "https://github.com/o/r", Ref: "v1", Subdir: "a"}},
		{"git@github.com:o/r.git#dev", Context{Kind: KindGit, URL: "git@github.com:o/r.git", Ref: "dev"}},
		{"ssh://git@h:2222/o/r.git", Context{Kind: KindGit, URL: "ssh://git@h:2222/o/r.git"}},
		{"https://dev.azure.com/org/proj/_git/repo#main", Context{Kind: KindGit, URL: "https://dev.azure.com/org/proj/_git/repo", Ref: "main"}},
		{"https://org.visualstudio.com/proj/_git/repo", Context{Kind: KindGit, URL: "https://org.visualstudio.com/proj/_git/repo"}},
		{"https://dev.azure.com/org/_git/repo?x=1", Context{Kind: KindTarball, URL: "https://dev.azure.com/org/_git/repo?x=1"}},
		{"https://example.com/_git/repo", Context{Kind: KindTarball, URL: "https://example.com/_git/repo"}},
		{"https://github.com/o/r", Context{Kind: KindTarball, URL: "https://github.com/o/r"}},
		{"https://x/y.tar.gz", Context{Kind: KindTarball, URL: "https://x/y.tar.gz"}},
		{"https://x/y.git?z", Context{Kind: KindTarball, URL: "https://x/y.git?z"}},
		{"oci://r/x:1", Context{Kind: KindOCI, URL: "oci://r/x:1"}},
		{"OCI://r/x:1", Context{Kind: KindOCI, URL: "OCI://r/x:1"}},
		{".", Context{Kind: KindLocal, URL: "."}},
		{"", Context{Kind: KindLocal}},
		{"./x.git#y", Context{Kind: KindLocal, URL: "./x.git#y"}},
		{"/dev/null", Context{Kind: KindLocal, URL: "/dev/null"}},
	} {
		got, err := ParseContext(tt.in)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("ParseContext(%q) = %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestParseContextTakesTheCredentialOut(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Credential{
		"https://s3cr3t@h/r.git":       {Username: "s3cr3t"},
		"https://me:s3cr3t@h/r.git#x":  {Username: "me", Password: "s3cr3t"},
		"https://me:s3%2Fcr3t@h/r.git": {Username: "me", Password: "s3/cr3t"},
	} {
		got, err := ParseContext(in)
		if err != nil || got.URL != "https://h/r.git" || got.Credential.Username != want.Username || got.Credential.Password != want.Password {
			t.Errorf("ParseContext(%q) = %+v, %v", in, got, err)
		}
		b, err := json.Marshal(got)
		if text := fmt.Sprintf("%v %+v %#v %s", got, got, got, b); err != nil || strings.Contains(text, "cr3t") {
			t.Errorf("%s shows the credential", text)
		}
	}
	for _, in := range []string{"https://me:s3cr3t@h:bad/r.git", "https://me:s3cr3t@/r.git", "https://me:s3cr3t@h/%zz/r.git", "git://me:s3cr3t@h/r.git",
		"https://me:s3cr3t@h/r.git#a b", "https://me:s3cr3t@h/r.git#a:../b", "https://me:s3cr3t@h/../r.git"} {
		_, err := ParseContext(in)
		if err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("ParseContext(%q) = %v, want an error without the password", in, err)
		}
	}
}

func TestRelativeURLs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ base, rel, want string }{
		{"https://h/a/b.git", "../c.git", "https://h/a/c.git"},
		{"https://h/a/b.git", "./c.git", "https://h/a/b.git/c.git"},
		{"https://h/a/b.git", "../../c.git", "https://h/c.git"},
		{"git@h:a/b.git", "../c.git", "git@h:a/c.git"},
		{"ssh://git@h:22/a/b.git", "../c.git", "ssh://git@h/a/c.git"},
		{"https://h/a/b.git", "https://other/x.git", "https://other/x.git"},
		{"https://h/a/b.git", "../../../c.git", ""},
		{"https://h/a/b.git", "/etc", ""},
		{"https://h/a/b.git", "file:///etc", ""},
	} {
		base, _, err := parseRemote(tt.base)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := base.relative(tt.rel)
		if tt.want == "" {
			if !errors.Is(err, ErrRefused) {
				t.Errorf("%s + %s = %v, %v; want it refused", tt.base, tt.rel, got, err)
			}
		} else if err != nil || got.String() != tt.want {
			t.Errorf("%s + %s = %v, %v; want %s", tt.base, tt.rel, got, err, tt.want)
		}
	}
}

func TestPublicAddresses(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{"8.8.8.8": true, "2606:4700::1111": true, "140.82.121.4": true, "127.0.0.1": false,
		"::1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.100.100.200": false,
		"0.0.0.0": false, "::": false, "::ffff:10.0.0.1": false, "fd00::1": false, "fe80::1%eth0": false, "ff02::1": false, "224.0.0.1": false,
		"255.255.255.255": false, "64:ff9b::a00:1": false, "2002:7f00:1::": false, "::7f00:1": false, "198.18.0.1": false} {
		if got := netguard.Public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("netguard.Public(%s) = %v", addr, got)
		}
	}
}

func FuzzParseContext(f *testing.F) {
	for _, s := range []string{"https://u:p@h/r.git#ref:dir", "git@h:p#x", "github.com/o/r", "ssh://g@h:22/~x/y", "oci://x", ".",
		"https://dev.azure.com/a/_git/b", "https://[::1]:8/x.git#:..", "git@h:/x", "ssh://h//x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseContext(s)
		if err != nil || c.Kind != KindGit {
			return
		}
		// What is accepted stays what it is when it is written down and read again.
		again := c.URL + "#" + c.Ref + ":" + c.Subdir
		r, cred, err := parseRemote(c.URL)
		if err != nil || r.String() != c.URL || !cred.IsZero() {
			t.Errorf("%q: URL %q is read as %q, %v", s, c.URL, r, err)
		}
		if c.Subdir == ".." || strings.HasPrefix(c.Subdir, "../") || strings.HasPrefix(c.Subdir, "/") || strings.Contains(c.Subdir, "/../") {
			t.Errorf("%q: subdirectory %q", s, c.Subdir)
		}
		if strings.HasSuffix(c.URL, ".git") && c.URL[:4] != "git:" {
			if d, err := ParseContext(again); err != nil || d.URL != c.URL || d.Ref != c.Ref || d.Subdir != c.Subdir {
				t.Errorf("%q: %+v is read again as %+v, %v", s, c, d, err)
			}
		}
	})
}

func FuzzDecodeTree(f *testing.F) {
	f.Add([]byte("100644 a\x0001234567890123456789"))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeTree(b)
		if err != nil {
			return
		}
		for i, e := range entries {
			if strings.Contains(e.name, "/") || e.name == ".." || e.name == "" || i > 0 && entries[i-1].name >= e.name {
				t.Errorf("entry %q", e.name)
			}
		}
	})
}
