package git

import (
	"fmt"
	"strings"
)

// tokenUsers are the user names that forges want beside an access token. Others take any.
var tokenUsers = map[string]string{
	"github.com": "x-access-token", "gitlab.com": "oauth2", "bitbucket.org": "x-token-auth",
}

// CredentialOf makes a credential for a repository of one secret value. For ssh that is a private key in
// PEM form. For https it is "user:password" or an access token. An empty value is no credential. The error
// holds nothing of the secret.
func CredentialOf(repository, value string) (Credential, error) {
	value = strings.TrimSpace(value)
	if value == "" {
		return Credential{}, nil
	}
	r, _, err := parseRemote(repository)
	if err != nil {
		return Credential{}, err
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
