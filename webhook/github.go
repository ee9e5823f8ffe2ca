package webhook

import (
	"errors"
	"fmt"

	"kiln/internal/event"
)

// The limits of GitHub's lists: what reaches them was cut.
const (
	githubCommits = 2048
	githubFiles   = 3000 // per commit
)

// A hubPayload is what GitHub sends, and with small differences Gitea, Gogs and Forgejo.
type hubPayload struct {
	Ref          string        `json:"ref"`
	RefType      string        `json:"ref_type"` // of Gitea's delete
	Before       string        `json:"before"`
	After        string        `json:"after"`
	Created      bool          `json:"created"`
	Deleted      bool          `json:"deleted"`
	Forced       bool          `json:"forced"`
	Commits      []hubCommit   `json:"commits"`
	TotalCommits *int          `json:"total_commits"` // Gitea's
	HeadCommit   *hubHead      `json:"head_commit"`
	Repository   hubRepository `json:"repository"`
	Pusher       hubUser       `json:"pusher"`
	Sender       hubUser       `json:"sender"`
	Action       string        `json:"action"`
	Number       int           `json:"number"`
	PullRequest  hubPull       `json:"pull_request"`
	Changes      struct {
		Base *struct{} `json:"base"` // GitHub: the base branch was changed
		Ref  *struct{} `json:"ref"`  // Gitea: likewise
	} `json:"changes"`
	RegistryPackage *hubPackage `json:"registry_package"`
	Package         *hubPackage `json:"package"`
}

type hubCommit struct {
	ID       string   `json:"id"`
	Message  string   `json:"message"`
	Author   hubUser  `json:"author"`
	Added    []string `json:"added"`
	Modified []string `json:"modified"`
	Removed  []string `json:"removed"`
}

// A hubHead is a commit of which only the message counts.
type hubHead struct {
	ID      string  `json:"id"`
	Message string  `json:"message"`
	Author  hubUser `json:"author"`
}

type hubUser struct {
	ID       int64  `json:"id"`
	Login    string `json:"login"`
	Username string `json:"username"`
	Name     string `json:"name"`
	FullName string `json:"full_name"` // Gitea's
	Email    string `json:"email"`
}

type hubRepository struct {
	ID            int64  `json:"id"`
	FullName      string `json:"full_name"`
	HTMLURL       string `json:"html_url"`
	CloneURL      string `json:"clone_url"`
	SSHURL        string `json:"ssh_url"`
	GitURL        string `json:"git_url"`
	DefaultBranch string `json:"default_branch"`
	Private       bool   `json:"private"`
}

type hubPull struct {
	Title             string  `json:"title"`
	Draft             bool    `json:"draft"`
	Merged            bool    `json:"merged"`
	User              hubUser `json:"user"`
	AuthorAssociation string  `json:"author_association"`
	Head              hubEnd  `json:"head"`
	Base              hubEnd  `json:"base"`
}

// A hubEnd is one side of a pull request. Its repository is absent if it was deleted.
type hubEnd struct {
	Ref  string         `json:"ref"`
	SHA  string         `json:"sha"`
	Repo *hubRepository `json:"repo"`
}

var hubShape = shapeOf[hubPayload]()

// decodeGitHub decodes what GitHub sends. A Gitea, Gogs or Forgejo on a hook of GitHub's is recognised
// by the headers of its own that it sends beside GitHub's.
func decodeGitHub(d delivery) (found, error) {
	for _, own := range []string{"X-Forgejo-Event", "X-Gitea-Event", "X-Gogs-Event"} {
		if d.header.Get(own) != "" {
			return decodeGitea(d)
		}
	}
	kind := d.header.Get("X-Github-Event")
	switch kind {
	case "ping":
		return pong()
	case "push", "pull_request", "registry_package", "package":
	case "":
		return found{}, errors.New("no X-GitHub-Event header")
	default:
		return ignored(fmt.Sprintf("event %q is of no interest", clip(kind, maxName)))
	}
	var p hubPayload
	if err := decode(d.body, hubShape, &p); err != nil {
		return found{}, err
	}
	switch kind {
	case "push":
		return hubPushed("github", p, len(p.Commits) >= githubCommits)
	case "pull_request":
		return hubPullRequest("github", p)
	}
	return githubPackage(d.hook, p)
}

// hubPushed makes an event of a push; cut says that the forge has not listed all commits.
func hubPushed(provider string, p hubPayload, cut bool) (found, error) {
	e := &event.GitPushed{Repository: p.Repository.event(provider), Ref: p.Ref, Forced: p.Forced,
		Created: p.Created, Deleted: p.Deleted, Before: p.Before, After: p.After}
	var files fileLists
	for _, c := range p.Commits {
		n := len(c.Added) + len(c.Modified) + len(c.Removed)
		if n >= githubFiles || c.Added == nil && c.Modified == nil && c.Removed == nil {
			files.unknown = true
		}
		e.Commits = append(e.Commits, event.Commit{ID: c.ID, Files: files.add(c.Added, c.Modified, c.Removed)})
		if c.ID == p.After {
			e.HeadMessage, e.Author = clip(c.Message, maxMessage), c.Author.person()
		}
	}
	if c := p.HeadCommit; c != nil && c.ID == p.After {
		e.HeadMessage, e.Author = clip(c.Message, maxMessage), c.Author.person()
	}
	if e.Pusher = p.Pusher.person(); p.Sender.Login != "" {
		e.Pusher.Login = clip(p.Sender.Login, maxText)
	}
	return pushed(e, cut || files.unknown)
}

// pushed checks and completes an event of a push, whatever the forge.
func pushed(e *event.GitPushed, filesUnknown bool) (found, error) {
	if err := known(e.Repository); err != nil {
		return found{}, err
	}
	if !isRef(e.Ref) {
		return ignored("neither a branch nor a tag was pushed")
	}
	e.Before, e.After = notZero(e.Before), notZero(e.After)
	for _, id := range []string{e.Before, e.After} {
		if id != "" && !isHash(id, false) {
			return found{}, fmt.Errorf("%q is not a commit ID", clip(id, maxName))
		}
	}
	e.Created = e.Created || e.Before == "" && e.After != ""
	e.Deleted = e.Deleted || e.Before != "" && e.After == ""
	if e.Before == "" && e.After == "" && !e.Deleted {
		return found{}, errors.New("push without commit IDs before and after it")
	}
	if len(e.Commits) > maxCommits {
		e.Commits, filesUnknown = e.Commits[:maxCommits], true
	}
	for _, c := range e.Commits {
		if !isHash(c.ID, false) {
			return found{}, fmt.Errorf("%q is not a commit ID", clip(c.ID, maxName))
		}
	}
	// The lists of a push that is no simple advance do not hold what it has changed.
	e.FilesUnknown = filesUnknown || e.Created || e.Forced || len(e.Commits) == 0
	if e.Deleted {
		e.Commits, e.FilesUnknown = nil, false
	}
	return found{facts: []fact{{push: e}}}, nil
}

// known checks that a repository can be recognised.
func known(r event.Repository) error {
	if len(r.CloneURLs) == 0 && r.WebURL == "" {
		return errors.New("the delivery names no repository")
	}
	return nil
}

// hubActions maps the actions of a pull request that matter.
var hubActions = map[string]string{
	"opened":             event.PullOpened,
	"reopened":           event.PullReopened,
	"synchronize":        event.PullSynchronized,
	"synchronized":       event.PullSynchronized, // Gitea
	"ready_for_review":   event.PullReady,
	"converted_to_draft": event.PullDrafted,
	"closed":             event.PullClosed,
}

func hubPullRequest(provider string, p hubPayload) (found, error) {
	action, ok := hubActions[p.Action]
	switch {
	case p.Action == "closed" && p.PullRequest.Merged:
		action = event.PullMerged
	case p.Action == "edited" && (p.Changes.Base != nil || p.Changes.Ref != nil):
		action = event.PullRetargeted
	case !ok:
		return ignored(fmt.Sprintf("action %q changes no commits", clip(p.Action, maxName)))
	}
	pr := p.PullRequest
	e := &event.PullRequestUpdated{Repository: p.Repository.event(provider), Number: p.Number, Action: action,
		Title: pr.Title, Draft: pr.Draft, HeadRef: pr.Head.Ref, HeadSHA: pr.Head.SHA, BaseRef: pr.Base.Ref,
		BaseSHA: pr.Base.SHA, Author: pr.User.person(), AuthorAssociation: clip(pr.AuthorAssociation, maxName)}
	e.FetchRef = fmt.Sprintf("refs/pull/%d/head", p.Number)
	if pr.Head.Repo != nil {
		e.HeadRepository = pr.Head.Repo.event(provider)
	}
	e.Fork = pr.Head.Repo == nil || pr.Head.Repo.ID != p.Repository.ID || pr.Head.Repo.FullName != p.Repository.FullName
	return pulled(e)
}

// pulled checks and completes an event of a pull request, whatever the forge.
func pulled(e *event.PullRequestUpdated) (found, error) {
	if err := known(e.Repository); err != nil {
		return found{}, err
	}
	if e.Number <= 0 {
		return found{}, errors.New("the pull request has no number")
	}
	if !isHash(e.HeadSHA, true) {
		return found{}, fmt.Errorf("%q is not the ID of the pull request's head commit", clip(e.HeadSHA, maxName))
	}
	if e.BaseSHA != "" && !isHash(e.BaseSHA, true) {
		return found{}, fmt.Errorf("%q is not the ID of the pull request's base commit", clip(e.BaseSHA, maxName))
	}
	e.HeadRef, e.BaseRef = branchName(e.HeadRef), branchName(e.BaseRef)
	if !goodRefName(e.BaseRef) || !goodRefName(e.HeadRef) {
		return found{}, errors.New("the pull request does not name its branches")
	}
	e.Title = clip(e.Title, maxText)
	return found{facts: []fact{{pull: e}}}, nil
}

func (r hubRepository) event(provider string) event.Repository {
	e := event.Repository{Provider: provider, FullName: clip(r.FullName, maxText), WebURL: plainURL(r.HTMLURL),
		CloneURLs:     links(r.CloneURL, r.SSHURL, r.GitURL),
		DefaultBranch: clip(r.DefaultBranch, maxRef), Private: r.Private}
	if r.ID != 0 {
		e.ID = fmt.Sprint(r.ID)
	}
	return e
}

func (u hubUser) person() event.Person {
	login, name := u.Login, u.Name
	if login == "" {
		login = u.Username
	}
	if name == "" {
		name = u.FullName
	}
	return person(numeric(u.ID), login, name, u.Email)
}

// A hubPackage is what GitHub tells of its registry.
type hubPackage struct {
	Name        string `json:"name"`
	Namespace   string `json:"namespace"`
	PackageType string `json:"package_type"`
	Version     struct {
		PackageURL        string `json:"package_url"` // ghcr.io/owner/name:tag
		ContainerMetadata struct {
			Tag struct {
				Name   string `json:"name"`
				Digest string `json:"digest"`
			} `json:"tag"`
		} `json:"container_metadata"`
	} `json:"package_version"`
}

// githubPackage makes an event of an image that was pushed to GitHub's registry.
func githubPackage(h Hook, p hubPayload) (found, error) {
	pkg := p.RegistryPackage
	if pkg == nil {
		pkg = p.Package
	}
	if pkg == nil {
		return found{}, errors.New("the delivery names no package")
	}
	if t := pkg.PackageType; t != "CONTAINER" && t != "container" && t != "docker" {
		return ignored("the package is no image")
	}
	if p.Action != "published" && p.Action != "updated" {
		return ignored(fmt.Sprintf("action %q pushes no image", clip(p.Action, maxName)))
	}
	ref := splitReference(pkg.Version.PackageURL)
	if ref.Repository == "" {
		ref = event.RegistryPushed{Registry: "ghcr.io", Repository: pkg.Namespace + "/" + pkg.Name}
	}
	tag := pkg.Version.ContainerMetadata.Tag
	ref.Provider, ref.Tag, ref.Digest = "github", tag.Name, tag.Digest
	ref.Actor = clip(p.Sender.Login, maxText)
	return images(h, []fact{{image: &ref}})
}
