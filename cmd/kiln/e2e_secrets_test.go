package main

import (
	"bytes"
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Secrets of the vaults that the server of TestServer is started with.
const (
	filedSecret  = "Zf-filed-secret-77/with+more==&characters-than-fit-into-a-line-of-base64"
	storedSecret = "Zs-stored first line\nsecond line of Zs-stored"
	envSecret    = "Ze-of-the-environment-88"
)

// vaultArgs are the server's arguments for them.
func vaultArgs(t *testing.T) []string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "db-password"), []byte(filedSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "torture-token"), []byte(tortureToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_TEST_VAULT_API_KEY", envSecret)
	return []string{"--vault", "env.test=env:KILN_TEST_VAULT_", "--vault", "vault.test=file:" + dir, "--vault", "vault.example=file:" + dir, "--vault", "store.test=store:ci-"}
}

const taskVaults = `version: v1.1.0
secrets:
  - id: filed
    keyvault: https://Vault.test/secrets/db-password
  - id: stored
    keyvault: https://store.test/secrets/token
  - id: env
    keyvault: https://env.test/secrets/api-key
volumes:
  - name: v
    secret:
      pw: {{.Secrets.filed | b64enc}}
steps:
  - build: -t sbox .
  - id: show
    cmd: |
      sbox sh -c 'echo "env $PW" "and $SET"; cat /run/v/pw; echo; base64 /run/v/pw; (echo -n user:; cat /run/v/pw) | base64
      printf "%s" "${PW%?????????}"; sleep 0.3; printf "%s\n" "${PW#"${PW%?????????}"}"; echo "$STORED" | sed "s/^/> /"; echo "$PW" >&2; echo "${#KEY} characters: $KEY"'
    env: ["KEY={{.Secrets.env}}", "PW={{.Secrets.filed}}", "SET={{.Values.set}}", 'STORED={{.Secrets.stored}}']
    volumeMounts: [{name: v, mountPath: /run/v}]
  - id: fails
    cmd: sbox sh -c 'exit 1' '{{.Secrets.filed}}'
    ignoreErrors: true
`

// testVaults has a task show the secrets of vaults, and its others, in every way. Nobody sees them.
func testVaultSecrets(t *testing.T, s *server) {
	const set, arg = "Zv-set-value-99", "Za-build-arg-55"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(storedSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("secret", "set", "ci-token", "--from-file", file)
	dir := files(t, map[string]string{"Dockerfile": base, "acr-task.yaml": taskVaults})
	res := runKiln(t, []string{"KILN_DATA=" + s.data, "set=" + set}, "run", "--set-secret", "set", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{"env *** and ***", "> ***", "show | ***", "24 characters: ***"} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q:\n%s", want, res.err)
		}
	}
	build := files(t, map[string]string{"Dockerfile": base + "ARG PW\nRUN --mount=type=secret,id=PW echo build $PW; test -n \"$PW\" -a \"$PW\" = \"$(cat /run/secrets/PW)\"\n"})
	built := runKiln(t, []string{"KILN_DATA=" + s.data, "PW=" + arg}, "build", "--secret-build-arg", "PW", build)
	if built.code != 0 || strings.Contains(built.err, arg) {
		t.Errorf("build: exit code %d\n%s", built.code, built.err)
	}
	s.nowhere(arg) // neither in the image's history nor in what the build daemon keeps
	_, rest, _ := strings.Cut(res.err, "=> run ")
	id, _, _ := strings.Cut(rest, " ")
	seen := res.err + s.must("runs", "-o", "json") + s.must("show", id, "-o", "json") + s.must("logs", id)
	for _, value := range []string{filedSecret, storedSecret, envSecret, set} {
		for _, part := range append(strings.Split(value, "\n"), base64.StdEncoding.EncodeToString([]byte(value))[:20]) {
			if strings.Contains(seen, part) {
				t.Errorf("%q was seen:\n%s", part, seen)
			}
			s.nowhere(part)
		}
	}
}

// nowhere checks that no file of the server and no command line holds a text.
func (s *server) nowhere(text string) {
	s.t.Helper()
	err := filepath.WalkDir(s.data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // files come and go
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(text)) {
			s.t.Errorf("%q is in clear in %s", text, path)
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
	if found := processes(s.t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, text) }); len(found) > 0 {
		s.t.Errorf("%q is on the command line of %d", text, found)
	}
}

func testVaultErrors(t *testing.T, s *server) {
	for vault, want := range map[string]string{
		"https://other.vault.azure.net/secrets/x": "acr-task.yaml:2:5: secrets: secret \"x\": nothing stands for the vault other.vault.azure.net on this server; its operator may add it with kiln serve --vault other.vault.azure.net=PROVIDER",
		"https://vault.test/secrets/none":         `secret "x": https://vault.test/secrets/none: the secret is not set: there is no file none in`,
	} {
		dir := files(t, map[string]string{"acr-task.yaml": "secrets:\n  - id: x\n    keyvault: " + vault + "\nsteps:\n  - cmd: img {{.Secrets.x}}\n"})
		if res := s.kiln("run", dir); res.code == 0 || !strings.Contains(res.err, want) {
			t.Errorf("%s: exit code %d, want %q\n%s", vault, res.code, want, res.err)
		}
	}
}
