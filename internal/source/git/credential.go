package git

import (
	"fmt"
	"strings"
)

// tokenUsers are the user names that forges want beside an access token. Others take any.
var tokenUsers = map[string]string{
	"github.com": "x-access-token", "gitlab.com": "oauth2", "bitbucket.org": "x-token-auth",
}

// Keys are private keys in PEM form for repositories that are reached by ssh: by the host of their URL, in
// lower case, or "default" for all that have none of their own.
type Keys map[string][]byte

// CredentialOf makes a credential for a repository of one secret value. For ssh that is a private key in
// PEM form. For https it is "user:password" or an access token. An empty value stands for one of the keys if
// the repository is reached by ssh, otherwise for no credential. The error holds nothing of the secret.
func CredentialOf(repository, value string, keys Keys) (Credential, error) {
	value = strings.TrimSpace(value)
	if value == "" && len(keys) == 0 {
		return Credential{}, nil
	}
	r, _, err := parseRemote(repository)
	if err != nil {
		return Credential{}, err
	}
	if value == "" {
		if r.scheme != "ssh" {
			return Credential{}, nil
		}
		own, ok := keys[r.host]
		if !ok {
			own = keys["default"]
		}
		return Credential{PrivateKey: own}, nil
	}
	key := strings.HasPrefix(value, "-----BEGIN ")
	switch {
	case r.scheme == "ssh" && !key:
		return Credential{}, fmt.Errorf("%w: the secret for %s is not a private key in PEM form, which ssh needs", ErrDenied, r)
	case key && r.scheme != "ssh":
		return Credential{}, fmt.Errorf("%w: the secret for %s is a private key; %s needs an access token, or user:password", ErrDenied, r, r.scheme)
	case key:
		return Credential{PrivateKey: []byte(value + "\n")}, nil
	}
	if user, password, ok := strings.Cut(value, ":"); ok {
		return Credential{Username: user, Password: password}, nil
	}
	return Credential{Username: tokenUsers[r.host], Password: value}, nil
}
