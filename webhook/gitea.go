package webhook

import (
	"errors"
	"fmt"
)

// giteaCommits is how many commits a Gitea lists at most that does not say how many there are.
const giteaCommits = 5

// decodeGitea decodes what Gitea, Gogs and Forgejo send. All of them send GitHub's headers too, so
// their own are looked at first; an old or proxied one may have GitHub's alone.
func decodeGitea(d delivery) (found, error) {
	provider, kind := "gitea", ""
	for _, name := range []string{"X-Forgejo-Event-Type", "X-Forgejo-Event", "X-Gitea-Event-Type", "X-Gitea-Event",
		"X-Gogs-Event", "X-Github-Event-Type", "X-Github-Event"} {
		if kind = d.header.Get(name); kind != "" {
			break
		}
	}
	if d.hook.Provider == "forgejo" || d.header.Get("X-Forgejo-Event") != "" {
		provider = "forgejo"
	}
	switch kind {
	case "ping":
		return pong()
	case "push", "delete", "pull_request", "pull_request_sync":
	case "create":
		return ignored("a push tells of the new ref too")
	case "":
		return found{}, errors.New("no X-Gitea-Event header")
	default:
		return ignored(fmt.Sprintf("event %q is of no interest", clip(kind, maxName)))
	}
	var p hubPayload
	if err := decode(d.body, hubShape, &p); err != nil {
		return found{}, err
	}
	switch kind {
	case "push":
		return hubPushed(provider, p, giteaCut(p))
	case "delete":
		return giteaDeleted(provider, p)
	}
	return hubPullRequest(provider, p)
}

// giteaCut reports whether the list of commits is, or may be, cut.
func giteaCut(p hubPayload) bool {
	if p.TotalCommits != nil {
		return *p.TotalCommits > len(p.Commits)
	}
	return len(p.Commits) >= giteaCommits
}

// giteaDeleted makes an event of a deleted branch, of which no push tells. Of a deleted tag one does.
func giteaDeleted(provider string, p hubPayload) (found, error) {
	if p.RefType != "branch" {
		return ignored("a push tells of the deleted tag too")
	}
	if !isRef(p.Ref) {
		p.Ref = "refs/heads/" + p.Ref
	}
	p.Deleted, p.Before, p.After = true, "", ""
	return hubPushed(provider, p, true)
}
