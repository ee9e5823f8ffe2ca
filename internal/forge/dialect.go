package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A dialect is what is particular to the API of one kind of forge.
type dialect struct {
	name string
	// address returns the API's address by the host, with its scheme, and the path below it.
	address func(host, root string) string
	// authorize puts the token into a request.
	authorize func(h http.Header, token string)
	// hooks returns the path of a repository's hooks.
	hooks   func(r *Repository) string
	create  func(ctx context.Context, r *Repository, h Hook) (string, error)
	replace func(ctx context.Context, r *Repository, id string, h Hook) (string, error)
	state   func(ctx context.Context, r *Repository, id string) (HookState, error)
	status  func(ctx context.Context, r *Repository, commit string, s Status) error
	// pulls returns a page of the open pull requests, and pull the path of one.
	pulls func(ctx context.Context, r *Repository, page int) ([]Pull, error)
	pull  func(r *Repository, number int) string
	// needs says what a token must be allowed, for errors.
	needs string
}

var dialects = map[string]dialect{
	"github": {
		name: "GitHub",
		address: func(host, root string) string {
			if strings.HasSuffix(host, "://github.com") {
				return "https://api.github.com"
			}
			return host + root + "/api/v3"
		},
		authorize: func(h http.Header, token string) {
			h.Set("Authorization", "Bearer "+token)
			h.Set("Accept", "application/vnd.github+json")
			h.Set("X-GitHub-Api-Version", "2022-11-28")
		},
		hooks: repositoryHooks, create: createGitHub, replace: replaceGitHub, state: stateOf, status: statusOf, pulls: pullsOf, pull: repositoryPull,
		needs: "a fine-grained token needs the repository permissions \"Webhooks\" and \"Commit statuses\" (read and write) and \"Pull requests\" (read), a classic one the scopes admin:repo_hook and repo:status (repo for a private repository)",
	},
	"gitlab": {
		name:      "GitLab",
		address:   func(host, root string) string { return host + root + "/api/v4" },
		authorize: func(h http.Header, token string) { h.Set("Private-Token", token) },
		hooks:     func(r *Repository) string { return "/projects/" + url.PathEscape(r.path) + "/hooks" },
		create:    createGitLab, replace: replaceGitLab, state: stateOfGitLab, status: statusOfGitLab, pulls: pullsOfGitLab,
		pull: func(r *Repository, number int) string {
			return "/projects/" + url.PathEscape(r.path) + "/merge_requests/" + strconv.Itoa(number)
		},
		needs: "the token needs the scope api and at least the role Maintainer",
	},
	"gitea":   giteaDialect("Gitea", "gitea"),
	"forgejo": giteaDialect("Forgejo", "forgejo"),
}

func giteaDialect(name, kind string) dialect {
	return dialect{
		name:      name,
		address:   func(host, root string) string { return host + root + "/api/v1" },
		authorize: func(h http.Header, token string) { h.Set("Authorization", "token "+token) },
		hooks:     repositoryHooks,
		create: func(ctx context.Context, r *Repository, h Hook) (string, error) {
			return createGitea(ctx, r, kind, h)
		},
		replace: func(ctx context.Context, r *Repository, id string, h Hook) (string, error) {
			return replaceGitea(ctx, r, kind, id, h)
		},
		state: stateOf, status: statusOf, pulls: pullsOf, pull: repositoryPull,
		needs: "the token needs the scope write:repository, and its owner must be an administrator of the repository",
	}
}

// repositoryHooks is the path of hooks in the APIs of GitHub and its relatives.
func repositoryHooks(r *Repository) string { return "/repos/" + r.path + "/hooks" }

// A hubHook is a hook in the APIs of GitHub and its relatives.
type hubHook struct {
	ID     int64     `json:"id,omitempty"`
	Name   string    `json:"name,omitempty"` // GitHub's, always web
	Type   string    `json:"type,omitempty"` // Gitea's and Forgejo's
	Active bool      `json:"active"`
	Events []string  `json:"events"`
	Config hubConfig `json:"config"`
	Last   *hubLast  `json:"last_response,omitempty"`
}

type hubConfig struct {
	URL         string `json:"url"`
	ContentType string `json:"content_type"`
	Secret      string `json:"secret,omitempty"`
	InsecureSSL string `json:"insecure_ssl,omitempty"`
}

// hubLast is GitHub's note of how the last delivery went.
type hubLast struct {
	Code    int    `json:"code"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

func githubHook(h Hook) hubHook {
	return hubHook{Name: "web", Active: true, Events: []string{"push", "pull_request"},
		Config: hubConfig{URL: h.URL, ContentType: "json", Secret: h.Secret, InsecureSSL: "0"}}
}

func createGitHub(ctx context.Context, r *Repository, h Hook) (string, error) {
	return r.post(ctx, r.hooks(r), githubHook(h))
}

func replaceGitHub(ctx context.Context, r *Repository, id string, h Hook) (string, error) {
	change := githubHook(h)
	change.Name = ""
	return id, r.call(ctx, http.MethodPatch, r.hooks(r)+"/"+url.PathEscape(id), change, nil)
}

func createGitea(ctx context.Context, r *Repository, kind string, h Hook) (string, error) {
	return r.post(ctx, r.hooks(r), hubHook{Type: kind, Active: true,
		Events: []string{"push", "create", "delete", "pull_request", "pull_request_sync"},
		Config: hubConfig{URL: h.URL, ContentType: "json", Secret: h.Secret}})
}

// replaceGitea makes a new hook: not every version lets the secret of one be changed.
func replaceGitea(ctx context.Context, r *Repository, kind, id string, h Hook) (string, error) {
	next, err := createGitea(ctx, r, kind, h)
	if err != nil {
		return id, err
	}
	return next, r.DeleteHook(ctx, id)
}

func stateOf(ctx context.Context, r *Repository, id string) (HookState, error) {
	var got hubHook
	if err := r.call(ctx, http.MethodGet, r.hooks(r)+"/"+url.PathEscape(id), nil, &got); err != nil {
		return HookState{}, err
	}
	s := HookState{URL: got.Config.URL, Active: got.Active}
	switch last := got.Last; {
	case !got.Active:
		s.Problem = "it is switched off at " + r.name
	case last != nil && last.Code >= 300:
		s.Problem = fmt.Sprintf("the last delivery was answered %d %s", last.Code, clip(last.Message, maxDescription))
	case last != nil && last.Code == 0 && last.Status != "" && last.Status != "unused":
		s.Problem = fmt.Sprintf("the last delivery did not arrive: %s", clip(last.Status+": "+last.Message, maxDescription))
	}
	return s, nil
}

// statusOf sets a status in the APIs of GitHub and its relatives.
func statusOf(ctx context.Context, r *Repository, commit string, s Status) error {
	return r.call(ctx, http.MethodPost, "/repos/"+r.path+"/statuses/"+commit, struct {
		State       State  `json:"state"`
		TargetURL   string `json:"target_url,omitempty"`
		Description string `json:"description,omitempty"`
		Context     string `json:"context"`
	}{s.State, s.URL, s.Description, s.Context}, nil)
}

// A labHook is a hook in GitLab's API.
type labHook struct {
	ID            int64  `json:"id,omitempty"`
	URL           string `json:"url"`
	Token         string `json:"token,omitempty"`
	Push          bool   `json:"push_events"`
	TagPush       bool   `json:"tag_push_events"`
	MergeRequests bool   `json:"merge_requests_events"`
	VerifySSL     bool   `json:"enable_ssl_verification"`
	AlertStatus   string `json:"alert_status,omitempty"`
}

func gitlabHook(h Hook) labHook {
	return labHook{URL: h.URL, Token: h.Secret, Push: true, TagPush: true, MergeRequests: true, VerifySSL: true}
}

func createGitLab(ctx context.Context, r *Repository, h Hook) (string, error) {
	return r.post(ctx, r.hooks(r), gitlabHook(h))
}

func replaceGitLab(ctx context.Context, r *Repository, id string, h Hook) (string, error) {
	return id, r.call(ctx, http.MethodPut, r.hooks(r)+"/"+url.PathEscape(id), gitlabHook(h), nil)
}

func stateOfGitLab(ctx context.Context, r *Repository, id string) (HookState, error) {
	var got labHook
	if err := r.call(ctx, http.MethodGet, r.hooks(r)+"/"+url.PathEscape(id), nil, &got); err != nil {
		return HookState{}, err
	}
	s := HookState{URL: got.URL, Active: got.AlertStatus == "" || got.AlertStatus == "executable"}
	switch {
	case !s.Active:
		s.Problem = "GitLab says that it is " + strings.ReplaceAll(clip(got.AlertStatus, maxDescription), "_", " ")
	case !got.Push || !got.TagPush || !got.MergeRequests:
		s.Problem = "it does not deliver pushes, tags and merge requests all"
	}
	return s, nil
}

var gitlabStates = map[State]string{Pending: "pending", Success: "success", Failure: "failed", Broken: "failed"}

func statusOfGitLab(ctx context.Context, r *Repository, commit string, s Status) error {
	err := r.call(ctx, http.MethodPost, "/projects/"+url.PathEscape(r.path)+"/statuses/"+commit, struct {
		State       string `json:"state"`
		Name        string `json:"name"`
		TargetURL   string `json:"target_url,omitempty"`
		Description string `json:"description,omitempty"`
	}{gitlabStates[s.State], s.Context, s.URL, s.Description}, nil)
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusBadRequest && strings.Contains(e.Message, "Cannot transition status") {
		return nil // it has that state already
	}
	return err
}

// post creates something and returns its ID.
func (r *Repository) post(ctx context.Context, path string, body any) (string, error) {
	var made struct {
		ID int64 `json:"id"`
	}
	if err := r.call(ctx, http.MethodPost, path, body, &made); err != nil {
		return "", err
	}
	if made.ID == 0 {
		return "", fmt.Errorf("%s: POST %s: the answer names no ID", r.name, path)
	}
	return strconv.FormatInt(made.ID, 10), nil
}
