package webhook

import (
	"errors"
	"fmt"

	"kiln/internal/event"
)

type azurePayload struct {
	ID       string        `json:"id"` // the same for every "Test": only with the facts an identity
	Type     string        `json:"eventType"`
	Created  string        `json:"createdDate"`
	Resource azureResource `json:"resource"`
}

type azureResource struct {
	Repository azureRepository `json:"repository"`

	// Of a push.
	RefUpdates []azureRefUpdate `json:"refUpdates"`
	Commits    []azureCommit    `json:"commits"`
	PushedBy   azureUser        `json:"pushedBy"`

	// Of a pull request.
	Number     int       `json:"pullRequestId"`
	Status     string    `json:"status"` // active, completed, abandoned
	Title      string    `json:"title"`
	Draft      bool      `json:"isDraft"`
	CreatedBy  azureUser `json:"createdBy"`
	SourceRef  string    `json:"sourceRefName"`
	TargetRef  string    `json:"targetRefName"`
	Source     azureTip  `json:"lastMergeSourceCommit"`
	Target     azureTip  `json:"lastMergeTargetCommit"`
	ForkSource *struct {
		Repository azureRepository `json:"repository"`
	} `json:"forkSource"`
}

type azureTip struct {
	ID string `json:"commitId"`
}

type azureRefUpdate struct {
	Name string `json:"name"`
	Old  string `json:"oldObjectId"`
	New  string `json:"newObjectId"`
}

type azureCommit struct {
	ID      string    `json:"commitId"`
	Comment string    `json:"comment"`
	Author  azureUser `json:"author"`
}

type azureUser struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Email       string `json:"email"`
	DisplayName string `json:"displayName"`
	UniqueName  string `json:"uniqueName"`
}

type azureRepository struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	RemoteURL     string `json:"remoteUrl"`
	SSHURL        string `json:"sshUrl"`
	WebURL        string `json:"webUrl"`
	DefaultBranch string `json:"defaultBranch"`
	Project       struct {
		Name       string `json:"name"`
		Visibility string `json:"visibility"`
	} `json:"project"`
}

var azureShape = shapeOf[azurePayload]()

// decodeAzure decodes the service hooks of Azure DevOps. One push may move several refs.
func decodeAzure(d delivery) (found, error) {
	var p azurePayload
	if err := decode(d.body, azureShape, &p); err != nil {
		return found{}, err
	}
	var f found
	var err error
	switch p.Type {
	case "git.push":
		f, err = azurePushed(p.Resource)
	case "git.pullrequest.created", "git.pullrequest.updated", "git.pullrequest.merged":
		f, err = azurePullRequest(p.Type, p.Resource)
	case "":
		return found{}, errors.New("no eventType")
	default:
		return ignored(fmt.Sprintf("event type %q is of no interest", clip(p.Type, maxName)))
	}
	for i := range f.facts {
		f.facts[i].id, f.facts[i].at = p.ID, p.Created
	}
	return f, err
}

func azurePushed(r azureResource) (found, error) {
	if len(r.RefUpdates) > maxFacts {
		return found{}, errTooMany
	}
	all := found{ignored: "no ref was updated"}
	for _, u := range r.RefUpdates {
		e := &event.GitPushed{Repository: r.Repository.event(), Ref: u.Name, Before: u.Old, After: u.New,
			Pusher: r.PushedBy.person()}
		for _, c := range r.Commits {
			if c.ID == u.New {
				e.HeadMessage, e.Author = clip(c.Comment, maxMessage), c.Author.person()
			}
			if len(r.RefUpdates) == 1 { // otherwise nobody knows which ref they belong to
				e.Commits = append(e.Commits, event.Commit{ID: c.ID})
			}
		}
		one, err := pushed(e, true)
		if err != nil {
			return found{}, err
		}
		all.facts = append(all.facts, one.facts...)
	}
	return all, nil
}

func azurePullRequest(kind string, r azureResource) (found, error) {
	e := &event.PullRequestUpdated{Repository: r.Repository.event(), Number: r.Number, Action: event.PullSynchronized,
		Title: r.Title, Draft: r.Draft, HeadRepository: r.Repository.event(), HeadRef: r.SourceRef, HeadSHA: r.Source.ID,
		BaseRef: r.TargetRef, BaseSHA: r.Target.ID, Author: r.CreatedBy.person(), Fork: r.ForkSource != nil}
	switch {
	case r.Status == "completed":
		e.Action = event.PullMerged
	case r.Status == "abandoned":
		e.Action = event.PullClosed
	case kind == "git.pullrequest.created":
		e.Action = event.PullOpened
	case kind == "git.pullrequest.merged":
		return ignored("a trial merge changes no commits")
	}
	if r.ForkSource != nil {
		e.HeadRepository = r.ForkSource.Repository.event()
	} else {
		e.FetchRef = r.SourceRef
	}
	return pulled(e)
}

func (r azureRepository) event() event.Repository {
	e := event.Repository{Provider: "azure-devops", ID: clip(r.ID, maxName), WebURL: plainURL(r.WebURL),
		FullName: clip(r.Project.Name+"/"+r.Name, maxText), CloneURLs: links(r.RemoteURL, r.SSHURL),
		DefaultBranch: branchName(r.DefaultBranch), Private: r.Project.Visibility != "public"}
	if e.WebURL == "" {
		e.WebURL = plainURL(r.RemoteURL)
	}
	return e
}

func (u azureUser) person() event.Person {
	name := u.DisplayName
	if name == "" {
		name = u.Name
	}
	return person(u.ID, u.UniqueName, name, u.Email)
}
