package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
)

// maxVaultValue bounds a value that is read from a file, in bytes.
const maxVaultValue = 1 << 20

// A Provider has the secrets of a vault. Its errors never hold a value.
type Provider interface {
	// Value returns the value of a secret, of the current version if none is given. It may block.
	Value(ctx context.Context, name, version string) (string, error)
}

// Vaults are what stands for the vaults that task files name by URL: a provider for each host.
type Vaults map[string]Provider

var vaultName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]*$`)

// Provider returns the provider for the URL of a secret, https://HOST/secrets/NAME[/VERSION], and what the
// provider is to be asked for.
func (v Vaults) Provider(location string) (p Provider, name, version string, err error) {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return nil, "", "", fmt.Errorf("%q is no URL of a secret", location)
	}
	p = v[strings.ToLower(u.Host)]
	if p == nil {
		return nil, "", "", fmt.Errorf("nothing stands for the vault %s on this server; its operator may add it with kiln serve --vault %s=PROVIDER", u.Host, u.Host)
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] != "secrets" || !vaultName.MatchString(parts[1]) {
		return nil, "", "", fmt.Errorf("%s does not name a secret; want https://%s/secrets/NAME, the name of letters, digits, dots, _ and -", location, u.Host)
	}
	if len(parts) == 3 {
		version = parts[2]
	}
	return p, parts[1], version, nil
}

// Value returns the value of the secret at a URL.
func (v Vaults) Value(ctx context.Context, location string) (string, error) {
	p, name, version, err := v.Provider(location)
	if err != nil {
		return "", err
	}
	value, err := p.Value(ctx, name, version)
	if err != nil {
		return "", fmt.Errorf("%s: %w", location, err)
	}
	return value, nil
}

// errVersion is the answer of providers that have one version of a secret.
var errVersion = errors.New("the provider of this vault has no versions; leave the version out of the URL")

// Env has secrets in environment variables: Prefix and the name in capitals, with _ for what no variable
// has in its name.
type Env struct {
	Prefix string
	Lookup func(variable string) (string, bool)
}

// Value implements Provider.
func (e Env) Value(_ context.Context, name, version string) (string, error) {
	if version != "" {
		return "", errVersion
	}
	variable := e.Prefix + strings.NewReplacer("-", "_", ".", "_").Replace(strings.ToUpper(name))
	value, ok := e.Lookup(variable)
	if !ok {
		return "", fmt.Errorf("%w: the server has no environment variable %s", ErrUnknown, variable)
	}
	return value, nil
}

// Files has secrets in the files of a directory. Of a single line the line break is left out.
type Files struct{ Dir string }

// Value implements Provider.
func (f Files) Value(_ context.Context, name, version string) (string, error) {
	if version != "" {
		return "", errVersion
	}
	file, err := os.OpenInRoot(f.Dir, name)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: there is no file %s in %s", ErrUnknown, name, f.Dir)
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxVaultValue+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxVaultValue {
		return "", fmt.Errorf("the file %s is larger than %d bytes", name, maxVaultValue)
	}
	return SingleLine(string(b)), nil
}

// Stored has the secrets of the server's own store whose names begin with a prefix.
type Stored struct {
	Prefix  string
	Secrets Named
}

// Value implements Provider.
func (s Stored) Value(ctx context.Context, name, version string) (string, error) {
	if version != "" {
		return "", errVersion
	}
	return s.Secrets.Value(ctx, s.Prefix+name)
}

// SingleLine returns a value without its line break if it is a single line: editors and commands add one
// that is not meant.
func SingleLine(value string) string {
	if line := strings.TrimSuffix(strings.TrimSuffix(value, "\n"), "\r"); !strings.Contains(line, "\n") {
		return line
	}
	return value
}

// ParseVault reads what an operator writes for a vault, HOST=KIND:WHAT, with KIND env, file or store.
func ParseVault(entry string) (host, kind, what string, err error) {
	host, provider, ok := strings.Cut(entry, "=")
	kind, what, _ = strings.Cut(provider, ":")
	switch {
	case !ok || host == "" || strings.ContainsAny(host, "/@"):
		err = fmt.Errorf("%q: want HOST=PROVIDER, such as myvault.vault.azure.net=file:/etc/kiln/secrets", entry)
	case !slices.Contains([]string{"env", "file", "store"}, kind):
		err = fmt.Errorf("%q: no provider %q; want env:PREFIX, file:DIR or store:PREFIX", entry, kind)
	case what == "":
		err = fmt.Errorf("%q: want %s:%s; without it a task file could name what is not meant for it", entry, kind,
			map[string]string{"env": "PREFIX", "file": "DIR", "store": "PREFIX"}[kind])
	}
	return strings.ToLower(host), kind, what, err
}
