package webhook

import (
	"errors"
	"fmt"
	"strings"

	"kiln/internal/event"
)

// decodeBitbucket decodes what Bitbucket Cloud and Bitbucket Data Center send; their event keys tell
// which it is.
func decodeBitbucket(d delivery) (found, error) {
	switch key := d.header.Get("X-Event-Key"); key {
	case "repo:push", "pullrequest:created", "pullrequest:updated", "pullrequest:fulfilled", "pullrequest:rejected":
		return decodeBitbucketCloud(key, d.body)
	case "repo:refs_changed", "pr:opened", "pr:from_ref_updated", "pr:modified", "pr:merged", "pr:declined", "pr:deleted":
		return decodeBitbucketServer(key, d.body)
	case "diagnostics:ping":
		return pong()
	case "":
		return found{}, errors.New("no X-Event-Key header")
	default:
		return ignored(fmt.Sprintf("event %q is of no interest", clip(key, maxName)))
	}
}

// bitbucketActions maps the event keys of pull requests.
var bitbucketActions = map[string]string{
	"pullrequest:created":   event.PullOpened,
	"pullrequest:updated":   event.PullSynchronized,
	"pullrequest:fulfilled": event.PullMerged,
	"pullrequest:rejected":  event.PullClosed,
	"pr:opened":             event.PullOpened,
	"pr:from_ref_updated":   event.PullSynchronized,
	"pr:modified":           event.PullRetargeted, // or only its title: no harm
	"pr:merged":             event.PullMerged,
	"pr:declined":           event.PullClosed,
	"pr:deleted":            event.PullClosed,
}

type cloudPayload struct {
	Actor      cloudUser       `json:"actor"`
	Repository cloudRepository `json:"repository"`
	Push       struct {
		Changes []cloudChange `json:"changes"`
	} `json:"push"`
	Pull struct {
		ID          int       `json:"id"`
		Title       string    `json:"title"`
		Draft       bool      `json:"draft"`
		Author      cloudUser `json:"author"`
		Source      cloudEnd  `json:"source"`
		Destination cloudEnd  `json:"destination"`
	} `json:"pullrequest"`
}

type cloudChange struct {
	Old    *cloudRef `json:"old"`
	New    *cloudRef `json:"new"`
	Forced bool      `json:"forced"`
}

type cloudRef struct {
	Type   string `json:"type"` // branch, tag
	Name   string `json:"name"`
	Target struct {
		Hash    string `json:"hash"`
		Message string `json:"message"`
		Author  struct {
			User cloudUser `json:"user"`
		} `json:"author"`
	} `json:"target"`
}

type cloudEnd struct {
	Branch struct {
		Name string `json:"name"`
	} `json:"branch"`
	Commit struct {
		Hash string `json:"hash"`
	} `json:"commit"`
	Repository *cloudRepository `json:"repository"`
}

// A cloudUser is an account. Several may have the same nickname, and it can be changed at any time.
type cloudUser struct {
	UUID        string `json:"uuid"`
	AccountID   string `json:"account_id"`
	Nickname    string `json:"nickname"`
	DisplayName string `json:"display_name"`
}

type cloudRepository struct {
	UUID     string `json:"uuid"`
	FullName string `json:"full_name"`
	Private  bool   `json:"is_private"`
	Links    struct {
		HTML struct {
			Href string `json:"href"`
		} `json:"html"`
	} `json:"links"`
}

var cloudShape = shapeOf[cloudPayload]()

func decodeBitbucketCloud(key string, body []byte) (found, error) {
	var p cloudPayload
	if err := decode(body, cloudShape, &p); err != nil {
		return found{}, err
	}
	if key == "repo:push" {
		return cloudPushed(p)
	}
	e := &event.PullRequestUpdated{Repository: p.Repository.event(), Number: p.Pull.ID, Action: bitbucketActions[key],
		Title: p.Pull.Title, Draft: p.Pull.Draft, HeadRef: p.Pull.Source.Branch.Name, HeadSHA: p.Pull.Source.Commit.Hash,
		BaseRef: p.Pull.Destination.Branch.Name, BaseSHA: p.Pull.Destination.Commit.Hash, Author: p.Pull.Author.person(), Fork: true}
	if r := p.Pull.Source.Repository; r != nil {
		e.HeadRepository = r.event()
		e.Fork = r.UUID != p.Repository.UUID || r.FullName != p.Repository.FullName
	}
	return pulled(e)
}

// cloudPushed makes an event of each ref of a push.
func cloudPushed(p cloudPayload) (found, error) {
	if len(p.Push.Changes) > maxFacts {
		return found{}, errTooMany
	}
	all := found{ignored: "no ref was changed"}
	for _, c := range p.Push.Changes {
		at := c.New
		if at == nil {
			at = c.Old
		}
		if at == nil {
			continue
		}
		e := &event.GitPushed{Repository: p.Repository.event(), Ref: "refs/heads/" + at.Name, Forced: c.Forced, Pusher: p.Actor.person()}
		if at.Type == "tag" || at.Type == "annotated_tag" {
			e.Ref = "refs/tags/" + at.Name
		}
		if c.Old != nil {
			e.Before = c.Old.Target.Hash
		}
		if c.New != nil {
			e.After, e.HeadMessage = c.New.Target.Hash, clip(c.New.Target.Message, maxMessage)
			e.Author = c.New.Target.Author.User.person()
		}
		one, err := pushed(e, true)
		if err != nil {
			return found{}, err
		}
		all.facts = append(all.facts, one.facts...)
	}
	return all, nil
}

func (r cloudRepository) event() event.Repository {
	e := event.Repository{Provider: "bitbucket", ID: clip(r.UUID, maxName), FullName: clip(r.FullName, maxText),
		WebURL: plainURL(r.Links.HTML.Href), Private: r.Private}
	if e.WebURL != "" {
		e.CloneURLs = links(e.WebURL+".git", "git@bitbucket.org:"+e.FullName+".git")
	}
	return e
}

func (u cloudUser) person() event.Person {
	id := u.UUID
	if id == "" {
		id = u.AccountID
	}
	return person(id, u.Nickname, u.DisplayName, "")
}

type serverPayload struct {
	Actor      serverUser       `json:"actor"`
	Repository serverRepository `json:"repository"`
	Changes    []struct {
		Ref struct {
			ID string `json:"id"`
		} `json:"ref"`
		From string `json:"fromHash"`
		To   string `json:"toHash"`
		Type string `json:"type"` // ADD, UPDATE, DELETE
	} `json:"changes"`
	Pull struct {
		ID     int    `json:"id"`
		Title  string `json:"title"`
		Draft  bool   `json:"draft"`
		Author struct {
			User serverUser `json:"user"`
		} `json:"author"`
		From serverEnd `json:"fromRef"`
		To   serverEnd `json:"toRef"`
	} `json:"pullRequest"`
}

type serverEnd struct {
	ID         string           `json:"id"`
	Latest     string           `json:"latestCommit"`
	Repository serverRepository `json:"repository"`
}

type serverUser struct {
	ID          int64  `json:"id"`
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
	Email       string `json:"emailAddress"`
}

type serverRepository struct {
	ID      int64  `json:"id"`
	Slug    string `json:"slug"`
	Public  bool   `json:"public"`
	Project struct {
		Key string `json:"key"`
	} `json:"project"`
	Links struct {
		Clone []struct {
			Href string `json:"href"`
		} `json:"clone"`
		Self []struct {
			Href string `json:"href"`
		} `json:"self"`
	} `json:"links"`
}

var serverShape = shapeOf[serverPayload]()

func decodeBitbucketServer(key string, body []byte) (found, error) {
	var p serverPayload
	if err := decode(body, serverShape, &p); err != nil {
		return found{}, err
	}
	if key == "repo:refs_changed" {
		return serverPushed(p)
	}
	to := p.Pull.To
	e := &event.PullRequestUpdated{Repository: to.Repository.event(), Number: p.Pull.ID, Action: bitbucketActions[key],
		Title: p.Pull.Title, Draft: p.Pull.Draft, HeadRepository: p.Pull.From.Repository.event(), HeadRef: p.Pull.From.ID,
		HeadSHA: p.Pull.From.Latest, BaseRef: to.ID, BaseSHA: to.Latest, Author: p.Pull.Author.User.person(),
		Fork: p.Pull.From.Repository.ID != to.Repository.ID}
	e.FetchRef = fmt.Sprintf("refs/pull-requests/%d/from", p.Pull.ID)
	return pulled(e)
}

func serverPushed(p serverPayload) (found, error) {
	if len(p.Changes) > maxFacts {
		return found{}, errTooMany
	}
	all := found{ignored: "no ref was changed"}
	for _, c := range p.Changes {
		one, err := pushed(&event.GitPushed{Repository: p.Repository.event(), Ref: c.Ref.ID, Before: c.From, After: c.To,
			Created: c.Type == "ADD", Deleted: c.Type == "DELETE", Pusher: p.Actor.person()}, true)
		if err != nil {
			return found{}, err
		}
		all.facts = append(all.facts, one.facts...)
	}
	return all, nil
}

func (r serverRepository) event() event.Repository {
	e := event.Repository{Provider: "bitbucket", FullName: clip(r.Project.Key+"/"+r.Slug, maxText), Private: !r.Public}
	if r.ID != 0 {
		e.ID = fmt.Sprint(r.ID)
	}
	for _, l := range r.Links.Clone[:min(len(r.Links.Clone), 8)] {
		e.CloneURLs = append(e.CloneURLs, links(l.Href)...)
	}
	if len(r.Links.Self) > 0 {
		e.WebURL = strings.TrimSuffix(plainURL(r.Links.Self[0].Href), "/browse")
	}
	return e
}

func (u serverUser) person() event.Person {
	return person(numeric(u.ID), u.Name, u.DisplayName, u.Email)
}
