package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kiln/internal/event"
)

// Bounds of a list of pull requests.
const (
	pullsPage   = 50
	maxPages    = 20
	maxPulls    = 8 << 20 // bytes of a page: a request repeats both of its repositories, and its text
	listTimeout = time.Minute
)

// A Pull is an open pull request.
type Pull struct {
	Number     int
	Title      string
	Draft      bool
	Created    time.Time
	HeadSHA    string
	HeadRef    string // branch, without refs/heads/
	HeadRepo   string // full name of the repository that HeadRef is in; empty if it was deleted
	BaseRef    string // branch, without refs/heads/
	FetchRef   string // ref of the repository that holds the head
	Fork       bool   // the head is not, or not known to be, in the repository
	Author     event.Person
	Membership string // GitHub's word for what the author is to the repository
}

// Pulls returns pull requests that are open, at most 1,000. One that is not among them may yet be open: it may have
// moved from one page to another while they were read. [Repository.PullAction] tells.
func (r *Repository) Pulls(ctx context.Context) ([]Pull, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, listTimeout, fmt.Errorf("no answer within %s", listTimeout))
	defer cancel()
	var list []Pull
	known := map[int]bool{}
	for page := 1; page <= maxPages; page++ {
		found, err := r.pulls(ctx, r, page)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 { // a forge may have smaller pages than it is asked for
			break
		}
		for _, p := range found {
			if !known[p.Number] {
				known[p.Number] = true
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// PullAction returns what became of a pull request: event.PullMerged, event.PullClosed, or nothing if it is open.
func (r *Repository) PullAction(ctx context.Context, number int) (string, error) {
	var got struct {
		State  string `json:"state"` // GitHub: open, closed; GitLab: opened, closed, locked, merged
		Merged bool   `json:"merged"`
	}
	err := r.callUpTo(ctx, maxPulls, http.MethodGet, r.pull(r, number), nil, &got)
	switch {
	case errors.Is(err, ErrNotFound):
		return event.PullClosed, nil
	case err != nil:
		return "", err
	case got.Merged || got.State == "merged":
		return event.PullMerged, nil
	case got.State == "closed":
		return event.PullClosed, nil
	}
	return "", nil
}

// Name is the repository's full name at the forge.
func (r *Repository) Name() string { return r.path }

// A hubPull is a pull request in the APIs of GitHub and its relatives.
type hubPull struct {
	Number  int       `json:"number"`
	Title   string    `json:"title"`
	Draft   bool      `json:"draft"`
	Created time.Time `json:"created_at"`
	User    struct {
		ID    int64  `json:"id"`
		Login string `json:"login"`
	} `json:"user"`
	Membership string `json:"author_association"`
	Head       hubEnd `json:"head"`
	Base       hubEnd `json:"base"`
}

type hubEnd struct {
	Ref  string `json:"ref"`
	SHA  string `json:"sha"`
	Repo *struct {
		ID       int64  `json:"id"`
		FullName string `json:"full_name"`
	} `json:"repo"`
}

// repositoryPull is the path of a pull request in the APIs of GitHub and its relatives.
func repositoryPull(r *Repository, number int) string {
	return "/repos/" + r.path + "/pulls/" + strconv.Itoa(number)
}

// pullsOf lists in the APIs of GitHub and its relatives, which name the size of a page differently.
func pullsOf(ctx context.Context, r *Repository, page int) ([]Pull, error) {
	var found []hubPull
	query := fmt.Sprintf("?state=open&per_page=%d&limit=%d&page=%d", pullsPage, pullsPage, page)
	if err := r.callUpTo(ctx, maxPulls, http.MethodGet, "/repos/"+r.path+"/pulls"+query, nil, &found); err != nil {
		return nil, err
	}
	list := make([]Pull, 0, len(found))
	for _, f := range found {
		p := Pull{Number: f.Number, Title: clip(f.Title, maxDescription), Draft: f.Draft, Created: f.Created, HeadSHA: f.Head.SHA, HeadRef: f.Head.Ref,
			BaseRef: f.Base.Ref, FetchRef: fmt.Sprintf("refs/pull/%d/head", f.Number), Fork: true,
			Author: event.Person{ID: numeric(f.User.ID), Login: f.User.Login}, Membership: f.Membership}
		if f.Head.Repo != nil {
			p.HeadRepo = f.Head.Repo.FullName
			p.Fork = f.Base.Repo == nil || f.Base.Repo.ID != f.Head.Repo.ID
		}
		list = append(list, p)
	}
	return list, checkPulls(r, list)
}

func pullsOfGitLab(ctx context.Context, r *Repository, page int) ([]Pull, error) {
	var found []struct {
		Number  int       `json:"iid"`
		Title   string    `json:"title"`
		Draft   bool      `json:"draft"`
		Created time.Time `json:"created_at"`
		Source  string    `json:"source_branch"`
		Target  string    `json:"target_branch"`
		SHA     string    `json:"sha"`
		From    int64     `json:"source_project_id"`
		To      int64     `json:"target_project_id"`
		Author  struct {
			ID       int64  `json:"id"`
			Username string `json:"username"`
		} `json:"author"`
	}
	path := fmt.Sprintf("/projects/%s/merge_requests?state=opened&per_page=%d&page=%d", url.PathEscape(r.path), pullsPage, page)
	if err := r.callUpTo(ctx, maxPulls, http.MethodGet, path, nil, &found); err != nil {
		return nil, err
	}
	list := make([]Pull, 0, len(found))
	for _, f := range found {
		list = append(list, Pull{Number: f.Number, Title: clip(f.Title, maxDescription), Draft: f.Draft, Created: f.Created, HeadSHA: f.SHA, HeadRef: f.Source,
			BaseRef: f.Target, FetchRef: fmt.Sprintf("refs/merge-requests/%d/head", f.Number), Fork: f.From == 0 || f.From != f.To,
			Author: event.Person{ID: numeric(f.Author.ID), Login: f.Author.Username}})
	}
	return list, checkPulls(r, list)
}

// checkPulls refuses a list that cannot be one of pull requests.
func checkPulls(r *Repository, list []Pull) error {
	if len(list) > 4*pullsPage {
		return fmt.Errorf("%s: a page of pull requests has %d of them", r.name, len(list))
	}
	for _, p := range list {
		whole := len(p.HeadSHA) == 40 && strings.Trim(p.HeadSHA, "0123456789abcdef") == ""
		if p.Number <= 0 || !whole || p.BaseRef == "" || p.HeadRef == "" || len(p.BaseRef)+len(p.HeadRef)+len(p.Author.Login) > 1024 {
			return fmt.Errorf("%s: the list of pull requests is not to be understood; is %s the address of its API?", r.name, r.base)
		}
	}
	return nil
}

func numeric(id int64) string {
	if id == 0 {
		return ""
	}
	return strconv.FormatInt(id, 10)
}
