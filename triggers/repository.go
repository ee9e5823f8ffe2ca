package triggers

import (
	"net/url"
	"strings"

	"kiln/internal/event"
)

// repositoryKey returns what all ways to write the URL of one repository have in common: host and path,
// in lower case. Two repositories may share a key, when they differ in case only: who looks at both looks
// once too often, which changes nothing.
func repositoryKey(location string) string {
	if rest, ok := strings.CutPrefix(location, "github.com/"); ok {
		location = "https://github.com/" + rest
	}
	if !strings.Contains(location, "://") { // user@host:path, as ssh has it
		host, path, ok := strings.Cut(location, ":")
		if !ok {
			return ""
		}
		location = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(location)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	host := u.Host
	switch port := u.Port(); {
	case u.Scheme == "ssh", port == "443" && u.Scheme == "https", port == "80" && u.Scheme == "http":
		host = u.Hostname()
	}
	path := strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
	return azureKey(strings.ToLower(host + "/" + path))
}

// azureKey gives the address that Azure DevOps has for ssh the form of the one for https.
func azureKey(key string) string {
	rest, ok := strings.CutPrefix(key, "ssh.dev.azure.com/v3/")
	if !ok {
		return key
	}
	parts := strings.SplitN(rest, "/", 3)
	if len(parts) != 3 {
		return key
	}
	return "dev.azure.com/" + parts[0] + "/" + parts[1] + "/_git/" + parts[2]
}

// repositoryKeys returns the keys of a repository as a forge names it.
func repositoryKeys(r event.Repository) []string {
	var keys []string
	for _, location := range append(r.CloneURLs, r.WebURL) {
		if key := repositoryKey(location); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}
