package event

import "time"

// An Alarm is the message of the clock that a track of a task is to be looked at.
type Alarm struct {
	TaskUID string    `json:"taskUid"`
	Track   string    `json:"track"` // its key
	Timer   string    `json:"timer,omitempty"`
	At      time.Time `json:"at"` // when it was set to go off
}

// A Hook is an address that a forge or registry delivers to, as it is stored.
type Hook struct {
	ID       string `json:"id"` // random; part of the address
	Name     string `json:"name"`
	Provider string `json:"provider"` // one of webhook.Providers
	// Secret and Previous are sealed to the server. Previous is accepted too while it is not empty.
	Secret   []byte `json:"secret"`
	Previous []byte `json:"previous,omitempty"`
	Disabled bool   `json:"disabled,omitempty"`
	Registry string `json:"registry,omitempty"` // how images name the registry that delivers
	URL      string `json:"url,omitempty"`      // of the repository at the forge, if kiln has registered the hook there
	RemoteID string `json:"remoteId,omitempty"` // of the hook at the forge
	// TokenSecret names the secret with the forge's token, and API is the address of the forge's API
	// where URL does not tell it. Address is the server's address that senders use.
	TokenSecret string    `json:"tokenSecret,omitempty"`
	API         string    `json:"api,omitempty"`
	Address     string    `json:"address,omitempty"`
	Created     time.Time `json:"created"`
	// LastDelivery is kept by whoever serves the hook, at most once a minute.
	LastDelivery time.Time `json:"lastDelivery,omitzero"`
}

// A Secret is a named secret value as it is stored, sealed to the server.
type Secret struct {
	Name    string    `json:"name"`
	Sealed  []byte    `json:"sealed"`
	Updated time.Time `json:"updated"`
}

// A TrackedImage is the last known state of a base image that a task is built on.
type TrackedImage struct {
	Name   string    `json:"name"`             // canonical
	Digest string    `json:"digest,omitempty"` // empty while it could not be resolved
	ETag   string    `json:"etag,omitempty"`
	Seen   time.Time `json:"seen,omitzero"` // when Digest was seen first
	// By is the run that pushed it and ByTask that run's task, if it was one of ours.
	By     string    `json:"by,omitempty"`
	ByTask string    `json:"byTask,omitempty"`
	Error  string    `json:"error,omitempty"` // why it cannot be resolved
	Next   time.Time `json:"next,omitzero"`   // when it is polled next, if it is
}

// Links are what a task is built on and what it builds, as far as is known.
type Links struct {
	TaskUID string `json:"taskUid"`
	Task    string `json:"task"`
	// From says how it is known: "scan" of the files, or "run" for what the last successful run has used.
	From       string     `json:"from"`
	Commit     string     `json:"commit,omitempty"` // whose files were scanned, or that was run
	Run        string     `json:"run,omitempty"`
	Bases      []LinkBase `json:"bases,omitempty"`
	Builds     []string   `json:"builds,omitempty"`     // canonical names of what it pushes under tags that others can build on
	Unresolved []string   `json:"unresolved,omitempty"` // what could not be told, as sentences
	Updated    time.Time  `json:"updated"`
}

// A LinkBase is an image that a task is built on.
type LinkBase struct {
	Name   string `json:"name"` // canonical
	Kind   string `json:"kind"` // Runtime or Buildtime
	Pinned bool   `json:"pinned,omitempty"`
	Digest string `json:"digest,omitempty"` // that the last run has used
}

// TrustKey is the key under which it is stored that the author of pull requests is trusted in a repository:
// its URL as in a run's Cause, and the author as there.
func TrustKey(repository, author string) string { return Hash(repository + "|" + author) }
