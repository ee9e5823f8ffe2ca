package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"kiln/cmd/kiln/internal/config"
)

// flags are one of each type that commands have.
func flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.String("listen", "127.0.0.1:7070", "")
	f.Bool("relaxed-sync", false, "")
	f.Int("parallel", 2, "")
	f.Duration("grace", 10*time.Second, "")
	f.StringSlice("nats", nil, "")
	f.StringArray("retention", []string{"default"}, "")
	f.StringToString("ssh-key", nil, "")
	return f
}

// load loads settings from arguments, the environment and a file.
func load(t *testing.T, args []string, env map[string]string, file string) (config.Settings, error) {
	t.Helper()
	f := flags()
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	from := config.Source{
		Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Nearest: func(name string, names []string) (string, bool) {
			for _, n := range names {
				if strings.ReplaceAll(name, "_", "-") == n {
					return n, true
				}
			}
			return "", false
		},
	}
	if file != "" {
		from.File = filepath.Join(t.TempDir(), "kiln.yaml")
		if err := os.WriteFile(from.File, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := config.Load(f, from)
	if err != nil {
		err = unplaced{strings.ReplaceAll(err.Error(), from.File, "kiln.yaml")}
	}
	return s, err
}

// unplaced is an error without the directory of the file.
type unplaced struct{ text string }

func (u unplaced) Error() string { return u.text }

const everything = `# settings
listen: 127.0.0.1:1
relaxed-sync: true
parallel: 3
grace: 1m
nats: [nats://a:1, "nats://b,c:2"]
retention:
  - --filter app:^pr- --ago 30d
ssh-key: {default: /k, "git.example.com": "/a,b"}
`

func TestFileSetsEveryType(t *testing.T) {
	t.Parallel()
	s, err := load(t, nil, nil, everything)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	for name, setting := range s {
		got[name] = setting.Value()
		if o := setting.Origin; o.Kind != config.File || o.Line < 2 || o.Column < 2 || !setting.Flag.Changed {
			t.Errorf("%s is from %+v", name, o)
		}
	}
	want := map[string]any{"listen": "127.0.0.1:1", "relaxed-sync": true, "parallel": int64(3), "grace": "1m0s",
		"nats": []string{"nats://a:1", "nats://b,c:2"}, "retention": []string{"--filter app:^pr- --ago 30d"},
		"ssh-key": []string{"default=/k", "git.example.com=/a,b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestFlagsWinOverTheEnvironmentWhichWinsOverTheFile(t *testing.T) {
	t.Parallel()
	s, err := load(t, []string{"--parallel", "9", "--nats", "nats://flag:1"},
		map[string]string{"KILN_PARALLEL": "8", "KILN_GRACE": "8s", "KILN_RETENTION": `a,"b,c"`, "KILN_LISTEN": "", "KILN_RELAXED_SYNC": "1", "KILN_SSH_KEY": "a=/b"}, everything)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, setting := range s {
		got[name] = setting.Text() + " " + string(setting.Origin.Kind)
	}
	want := map[string]string{"listen": "127.0.0.1:1 file", "relaxed-sync": "true environment", "parallel": "9 flag", "grace": "8s environment",
		"nats": "nats://flag:1 flag", "retention": "a, b,c environment", "ssh-key": "a=/b environment"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := load(t, nil, map[string]string{"KILN_GRACE": "soon", "KILN_NATS": "a\nb"}, `
listen: 7070
parallel: many
relaxed_sync: true
grace: [1]
nats: nats://a:1
parallel: 4
retention: [[a]]
ssh-key: [a=b]
`)
	want := `KILN_GRACE: "soon": want a duration such as 90s or 5m
KILN_NATS: "a\nb": want values with commas between them; one that has a comma in it, in double quotes
kiln.yaml:2:9: listen: want a string: put it in quotes
kiln.yaml:3:11: parallel: want a whole number
kiln.yaml:4:1: "relaxed_sync" is no setting (did you mean "relaxed-sync"?)
kiln.yaml:5:8: grace: want a duration such as 90s or 5m
kiln.yaml:6:7: nats: want a list, such as [a, b]
kiln.yaml:7:1: parallel: given already in line 3
kiln.yaml:8:12: retention: line 8: want a list of strings
kiln.yaml:9:10: ssh-key: want a table of strings, such as {name: value}`
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestFilesThatAreNoSettingsAreRefused(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"a: [":                            "kiln.yaml:1: did not find expected node content",
		"- a":                             "kiln.yaml:1:1: want settings, such as listen: 127.0.0.1:7070",
		"listen: a\n---\nlisten: b":       "kiln.yaml: want one document, without --- between parts of it",
		"<<: {listen: a}":                 `kiln.yaml:1:1: "<<" is no setting`,
		"? [a]\n: b":                      `kiln.yaml:1:3: "" is no setting`,
		"grace: soon":                     `kiln.yaml:1:8: grace: "soon": want a duration such as 90s or 5m`,
		"# " + strings.Repeat("x", 1<<20): "kiln.yaml: larger than 1048576 bytes",
	} {
		if _, err := load(t, nil, nil, file); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v, want %s", file, err, want)
		}
	}
	for _, empty := range []string{"# nothing", "\n", "null", "---\n", "&a null"} {
		if _, err := load(t, nil, nil, empty); err != nil {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

func TestProblemsSayWhereTheirSettingsAreFrom(t *testing.T) {
	t.Parallel()
	s, err := load(t, []string{"--listen", "x"}, map[string]string{"KILN_GRACE": "1s"}, "parallel: 4\n")
	if err != nil {
		t.Fatal(err)
	}
	file := s["parallel"].Origin.Name
	for problem, want := range map[string]string{
		"--listen x: no":                  "--listen x: no",
		"--grace 1s: no":                  "KILN_GRACE: --grace 1s: no",
		"--parallel 4: want --grace more": "--parallel 4: want --grace more (--parallel is from " + file + ":1:11, --grace is from KILN_GRACE)",
	} {
		if got := s.Place(unplaced{problem}); got.Error() != want {
			t.Errorf("Place(%s) = %s, want %s", problem, got, want)
		}
	}
	if err := s.Place(nil); err != nil {
		t.Error(err)
	}
}

func TestCredentialsInAddressesAreHidden(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nats://user:pw@host:1,tls://t0ken@b":                         "nats://***@host:1,tls://***@b",
		"s3://b?endpoint=http://x/&secret=abc&region=r&AccessKeyId=1": "s3://b?endpoint=http://x/&secret=***&region=r&AccessKeyId=***",
		"git@host:path --filter a":                                    "git@host:path --filter a",
	} {
		if got := config.Redact(text); got != want {
			t.Errorf("Redact(%s) = %s, want %s", text, got, want)
		}
	}
}

// FuzzFile looks for files that make Load panic, or that give a setting a place that is none.
func FuzzFile(f *testing.F) {
	f.Add(everything)
	f.Add("a: &x [*x]\nnats: *x\n")
	f.Add("ssh-key: {a: b, <<: c}")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content string) {
		file := filepath.Join(dir, "kiln.yaml")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := config.Load(flags(), config.Source{File: file, Lookup: func(string) (string, bool) { return "", false },
			Nearest: func(string, []string) (string, bool) { return "", false }})
		for name, setting := range s {
			if o := setting.Origin; o.Kind == config.File && (o.Line < 1 || o.Column < 1) {
				t.Errorf("%s is from %+v (%v)", name, o, err)
			}
			_ = setting.Value()
		}
	})
}
