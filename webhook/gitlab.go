package webhook

import (
	"errors"
	"fmt"
	"strconv"

	"kiln/internal/event"
)

type gitlabPayload struct {
	Kind         string         `json:"object_kind"`
	Ref          string         `json:"ref"`
	Before       string         `json:"before"`
	After        string         `json:"after"`
	UserName     string         `json:"user_name"`
	UserUsername string         `json:"user_username"`
	UserEmail    string         `json:"user_email"`
	Project      gitlabProject  `json:"project"`
	Commits      []gitlabCommit `json:"commits"`
	Total        int            `json:"total_commits_count"`
	User         gitlabUser     `json:"user"`
	Merge        gitlabMerge    `json:"object_attributes"`
	Changes      struct {
		Target         *struct{}       `json:"target_branch"`
		Draft          *gitlabSwitched `json:"draft"`
		WorkInProgress *gitlabSwitched `json:"work_in_progress"` // before 16
	} `json:"changes"`
}

// A gitlabSwitched is a flag before and after.
type gitlabSwitched struct {
	Current bool `json:"current"`
}

type gitlabUser struct {
	ID       int64  `json:"id"`
	Name     string `json:"name"`
	Username string `json:"username"`
	Email    string `json:"email"`
}

type gitlabProject struct {
	ID            int64  `json:"id"`
	Path          string `json:"path_with_namespace"`
	WebURL        string `json:"web_url"`
	HTTPURL       string `json:"git_http_url"`
	SSHURL        string `json:"git_ssh_url"`
	DefaultBranch string `json:"default_branch"`
	Visibility    int    `json:"visibility_level"` // 20 is public
}

type gitlabCommit struct {
	ID       string     `json:"id"`
	Message  string     `json:"message"`
	Author   gitlabUser `json:"author"`
	Added    []string   `json:"added"`
	Modified []string   `json:"modified"`
	Removed  []string   `json:"removed"`
}

type gitlabMerge struct {
	IID            int           `json:"iid"`
	Action         string        `json:"action"`
	Title          string        `json:"title"`
	OldRev         string        `json:"oldrev"`
	SourceBranch   string        `json:"source_branch"`
	TargetBranch   string        `json:"target_branch"`
	SourceProject  int64         `json:"source_project_id"`
	TargetProject  int64         `json:"target_project_id"`
	Source         gitlabProject `json:"source"`
	Target         gitlabProject `json:"target"`
	LastCommit     gitlabCommit  `json:"last_commit"`
	AuthorID       int64         `json:"author_id"`
	Draft          bool          `json:"draft"`
	WorkInProgress bool          `json:"work_in_progress"`
}

var gitlabShape = shapeOf[gitlabPayload]()

// decodeGitLab decodes what GitLab sends. It has no ping: its test is a delivery like any other.
func decodeGitLab(d delivery) (found, error) {
	switch kind := d.header.Get("X-Gitlab-Event"); kind {
	case "Push Hook", "Tag Push Hook", "Merge Request Hook", "System Hook":
	case "":
		return found{}, errors.New("no X-Gitlab-Event header")
	default:
		return ignored(fmt.Sprintf("event %q is of no interest", clip(kind, maxName)))
	}
	var p gitlabPayload
	if err := decode(d.body, gitlabShape, &p); err != nil {
		return found{}, err
	}
	switch p.Kind {
	case "push", "tag_push":
		return gitlabPushed(p)
	case "merge_request":
		return gitlabMergeRequest(p)
	}
	return ignored(fmt.Sprintf("object kind %q is of no interest", clip(p.Kind, maxName)))
}

func gitlabPushed(p gitlabPayload) (found, error) {
	e := &event.GitPushed{Repository: p.Project.event(), Ref: p.Ref, Before: p.Before, After: p.After,
		Pusher: person("", p.UserUsername, p.UserName, p.UserEmail)}
	var files fileLists
	for _, c := range p.Commits {
		if c.Added == nil && c.Modified == nil && c.Removed == nil {
			files.unknown = true
		}
		e.Commits = append(e.Commits, event.Commit{ID: c.ID, Files: files.add(c.Added, c.Modified, c.Removed)})
		if c.ID == p.After {
			e.HeadMessage, e.Author = clip(c.Message, maxMessage), person("", "", c.Author.Name, c.Author.Email)
		}
	}
	// The commits are the last 20 of the push.
	return pushed(e, files.unknown || p.Total != len(p.Commits))
}

var gitlabActions = map[string]string{
	"open":   event.PullOpened,
	"reopen": event.PullReopened,
	"merge":  event.PullMerged,
	"close":  event.PullClosed,
}

func gitlabMergeRequest(p gitlabPayload) (found, error) {
	m := p.Merge
	action := gitlabActions[m.Action]
	if m.Action == "update" {
		action = gitlabUpdate(p)
	}
	if action == "" {
		return ignored(fmt.Sprintf("action %q changes no commits", clip(m.Action, maxName)))
	}
	e := &event.PullRequestUpdated{Repository: p.Project.event(), Number: m.IID, Action: action, Title: m.Title,
		Draft: m.Draft || m.WorkInProgress, HeadRepository: m.Source.event(), HeadRef: m.SourceBranch,
		HeadSHA: m.LastCommit.ID, BaseRef: m.TargetBranch, Fork: m.SourceProject != m.TargetProject || m.SourceProject == 0}
	e.FetchRef = fmt.Sprintf("refs/merge-requests/%d/head", m.IID)
	if p.User.ID == m.AuthorID {
		e.Author = person(numeric(p.User.ID), p.User.Username, p.User.Name, p.User.Email)
	}
	if e.HeadRepository.WebURL == "" {
		e.HeadRepository = event.Repository{}
	}
	return pulled(e)
}

// gitlabUpdate returns the action of an update, empty for one that touches labels, titles and the like.
func gitlabUpdate(p gitlabPayload) string {
	draft := p.Changes.Draft
	if draft == nil {
		draft = p.Changes.WorkInProgress
	}
	switch {
	case p.Merge.OldRev != "":
		return event.PullSynchronized
	case p.Changes.Target != nil:
		return event.PullRetargeted
	case draft != nil && draft.Current:
		return event.PullDrafted
	case draft != nil:
		return event.PullReady
	}
	return ""
}

func (p gitlabProject) event() event.Repository {
	r := event.Repository{Provider: "gitlab", FullName: clip(p.Path, maxText), WebURL: plainURL(p.WebURL),
		CloneURLs: links(p.HTTPURL, p.SSHURL), DefaultBranch: clip(p.DefaultBranch, maxRef), Private: p.Visibility != gitlabPublic}
	if p.ID != 0 {
		r.ID = strconv.FormatInt(p.ID, 10)
	}
	return r
}

const gitlabPublic = 20
