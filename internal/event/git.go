package event

import "time"

// Types of events that forges tell of.
const (
	TypeGitPushed          = "git.pushed"               // data: GitPushed
	TypePullRequestUpdated = "git.pull_request.updated" // data: PullRequestUpdated
)

// GitFilter matches every event of a forge.
const GitFilter = "kiln.event.git.>"

// DeliverySubject is where an event that came in by a webhook is published, create-only: its ID is a
// hash of what identifies it, so that a repeated delivery finds the subject taken.
func DeliverySubject(typ, id string) string { return "kiln.event." + typ + "." + id }

// GitPushed is the data of TypeGitPushed: a branch or tag was created, moved or deleted. It is a hint:
// what the ref points at now is for the repository to say.
type GitPushed struct {
	Repository Repository `json:"repository"`
	Ref        string     `json:"ref"`              // in full: refs/heads/main, refs/tags/v1
	Before     string     `json:"before,omitempty"` // empty if the ref was created, or if not known
	After      string     `json:"after,omitempty"`  // empty if the ref was deleted, or if not known
	Created    bool       `json:"created,omitempty"`
	Deleted    bool       `json:"deleted,omitempty"`
	Forced     bool       `json:"forced,omitempty"` // the forge says that history was rewritten; not all of them do

	// Commits are those of the push, in the forge's order; not all of them where FilesUnknown is set.
	Commits []Commit `json:"commits,omitempty"`
	// FilesUnknown says that the files of Commits are not all that the push has changed: the forge
	// names none, has cut its list, or the push is no simple advance. A path filter must then ask the
	// repository, and never conclude that nothing matches.
	FilesUnknown bool `json:"filesUnknown,omitempty"`

	HeadMessage string `json:"headMessage,omitempty"` // the message of After
	Author      Person `json:"author,omitzero"`       // of After
	Pusher      Person `json:"pusher,omitzero"`

	Delivery Delivery `json:"delivery"`
}

// A Commit is a commit of a push and the files that it added, changed or removed.
type Commit struct {
	ID    string   `json:"id"`
	Files []string `json:"files,omitempty"`
}

// Actions of a PullRequestUpdated.
const (
	PullOpened       = "opened"
	PullReopened     = "reopened"
	PullSynchronized = "synchronized" // its commits have changed
	PullRetargeted   = "retargeted"   // it is to be merged into another branch than before
	PullReady        = "ready"        // no longer a draft
	PullDrafted      = "drafted"      // a draft again
	PullClosed       = "closed"       // without being merged
	PullMerged       = "merged"
)

// PullRequestUpdated is the data of TypePullRequestUpdated: a pull or merge request was opened, got
// other commits, or was closed. What changes neither commits nor readiness is no event.
type PullRequestUpdated struct {
	Repository Repository `json:"repository"` // that it is to be merged into
	Number     int        `json:"number"`
	Action     string     `json:"action"`
	Title      string     `json:"title,omitempty"`
	Draft      bool       `json:"draft,omitempty"`

	HeadRepository Repository `json:"headRepository,omitzero"` // zero if it was deleted
	HeadRef        string     `json:"headRef"`                 // branch, without refs/heads/
	HeadSHA        string     `json:"headSHA"`                 // may be abbreviated (Bitbucket): resolve it
	BaseRef        string     `json:"baseRef"`                 // branch, without refs/heads/
	BaseSHA        string     `json:"baseSHA,omitempty"`
	// FetchRef is the ref of Repository that holds the head, where the forge keeps one.
	FetchRef string `json:"fetchRef,omitempty"`
	// Fork says that the head is not, or not known to be, in Repository: it is not trusted.
	Fork bool `json:"fork,omitempty"`

	Author Person `json:"author,omitzero"`
	// AuthorAssociation is GitHub's word for what the author is to the repository, in capitals: OWNER,
	// MEMBER, COLLABORATOR, CONTRIBUTOR, FIRST_TIME_CONTRIBUTOR ... Empty where the forge does not say.
	AuthorAssociation string `json:"authorAssociation,omitempty"`

	Delivery Delivery `json:"delivery"`
}

// A Repository is how a forge names one of its repositories. Its URLs carry no credentials.
type Repository struct {
	Provider      string   `json:"provider"`           // github, gitlab ...
	ID            string   `json:"id,omitempty"`       // the forge's own, which survives renaming
	FullName      string   `json:"fullName,omitempty"` // owner/name, group/subgroup/name, project/name
	WebURL        string   `json:"webURL,omitempty"`
	CloneURLs     []string `json:"cloneURLs,omitempty"`
	DefaultBranch string   `json:"defaultBranch,omitempty"`
	Private       bool     `json:"private,omitempty"`
}

// A Person is who wrote or pushed something, as far as the forge says.
type Person struct {
	// ID is the forge's own for the account, where it says so: unlike a login it is never another's later.
	ID    string `json:"id,omitempty"`
	Login string `json:"login,omitempty"`
	Name  string `json:"name,omitempty"`
	Email string `json:"email,omitempty"`
}

// A Delivery is how an event reached kiln: the request as it was, so that it can be explained and
// decoded again. It holds no secret of the hook.
type Delivery struct {
	Hook     string    `json:"hook"`
	Provider string    `json:"provider"`
	ID       string    `json:"id,omitempty"`    // the sender's, if it has one
	Index    int       `json:"index,omitempty"` // of the event within the delivery
	Received time.Time `json:"received"`

	Header map[string]string `json:"header,omitempty"` // those that tell what the body is
	// Body is the JSON that was received; it is empty in all events of a delivery but the first.
	Body     []byte `json:"body,omitempty"`
	Encoding string `json:"encoding,omitempty"` // of Body: s2 (a block of it), or empty for none
	Size     int    `json:"size"`               // of the body as it was received
	// Omitted is why no event of the delivery has its body.
	Omitted string `json:"omitted,omitempty"`
}

// TypeDeliveryRejected is the type of a delivery that was accepted, as one of many at once, and then could
// not be decoded: nothing follows of it.
const TypeDeliveryRejected = "delivery.rejected" // data: DeliveryRejected

// DeliveryRejected is the data of TypeDeliveryRejected.
type DeliveryRejected struct {
	Reason   string   `json:"reason"`
	Delivery Delivery `json:"delivery"`
}

// MaxDeliveryBody is the largest Body of a Delivery, in bytes as stored.
const MaxDeliveryBody = 1 << 20
