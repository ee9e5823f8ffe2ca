package event

import (
	"encoding/json"
	"time"
)

// TypeTest is the type of the event that a target of notifications is tried with. It is stored nowhere.
const TypeTest = "kiln.test"

// NotifiedTypes are the types of events that somebody can be notified of.
var NotifiedTypes = []string{TypeRunQueued, TypeRunStarted, TypeRunFinished, TypeImagePushed, TypeImageDeleted}

// NotifiedFilters match the events of NotifiedTypes.
var NotifiedFilters = []string{"kiln.event.run.queued.*", "kiln.event.run.started.*", FinishedFilter, ImageFilter}

// SubjectNotify covers what is to be sent out.
const SubjectNotify = "kiln.notify.>"

// NotifySubject is the queue of what is to be sent to one target.
func NotifySubject(target string) string { return "kiln.notify." + target }

// StatusFilter covers the statuses of commits that are to be set.
const StatusFilter = "kiln.notify.status.*"

// StatusSubject is the queue of statuses for the forge at a host.
func StatusSubject(host string) string { return "kiln.notify.status." + Hash(host) }

// A Target is where events are sent to: an address of somebody who wants to be notified.
type Target struct {
	ID   string `json:"id"` // random
	Name string `json:"name"`
	// URL is the scheme and host of the address, which alone may be shown: the rest is often as good as a
	// password. Address is all of it, sealed.
	URL     string   `json:"url"`
	Address []byte   `json:"address,omitempty"`
	Events  []string `json:"events"`           // of NotifiedTypes
	Task    string   `json:"task,omitempty"`   // only runs and images of this task; empty means all
	Secret  string   `json:"secret,omitempty"` // name of the secret that notifications are signed with
	// Webhook is set if the target is a webhook of the registry: it is told of images alone, in ACR's words.
	Webhook *Webhook `json:"webhook,omitempty"`
	// Disabled targets get nothing; Reason says why.
	Disabled bool      `json:"disabled,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Created  time.Time `json:"created"`
}

// A Notification waits in the queue of a target: an event to be sent, or a run whose commit is to get a
// status.
type Notification struct {
	Target string `json:"target,omitempty"`
	Event  *Event `json:"event,omitempty"`
	// Seq is the place of the event in the stream of events, if it is not here: a queue that nobody empties
	// takes little room then.
	Seq uint64 `json:"seq,omitempty"`
	Run string `json:"run,omitempty"`
	// Host is where the forge is, if it is about a run.
	Host string `json:"host,omitempty"`
	// Since is when it came into the queue; it is given up a day later.
	Since time.Time `json:"since"`
}

// An Undelivered notification was given up.
type Undelivered struct {
	Notification Notification `json:"notification"`
	Attempts     int          `json:"attempts"`
	Error        string       `json:"error"` // of the last attempt
	At           time.Time    `json:"at"`
}

// Actions that a webhook of the registry can be told of, and that of the request that tries it.
const (
	ActionPush        = "push"
	ActionDelete      = "delete"
	ActionChartPush   = "chart_push"
	ActionChartDelete = "chart_delete"
	ActionPing        = "ping"
)

// WebhookActions are those that happen in the registry.
var WebhookActions = []string{ActionPush, ActionDelete, ActionChartPush, ActionChartDelete}

// A Webhook says what of the registry a target is told.
type Webhook struct {
	Actions []string `json:"actions"` // of WebhookActions
	// Scope is REPOSITORY:TAG, of which each part may end in an asterisk for whatever follows; empty means all.
	Scope string `json:"scope,omitempty"`
	// Headers are further headers of its requests, sealed: they may hold a password. HeaderNames are their names.
	Headers     []byte   `json:"headers,omitempty"`
	HeaderNames []string `json:"headerNames,omitempty"`
}

// SubjectDelivered covers what was sent to webhooks, and how they answered.
const SubjectDelivered = "kiln.delivered.>"

// DeliveredSubject holds what was sent to one webhook.
func DeliveredSubject(target string) string { return "kiln.delivered." + target }

// A Sent is one request to a webhook.
type Sent struct {
	Event    string          `json:"event"` // its ID
	Action   string          `json:"action"`
	Image    string          `json:"image,omitempty"` // REPOSITORY:TAG or REPOSITORY@DIGEST
	At       time.Time       `json:"at"`
	Attempt  uint64          `json:"attempt"`
	Request  json.RawMessage `json:"request"`          // its body
	Status   int             `json:"status,omitempty"` // of the answer; 0 for none
	Response string          `json:"response,omitempty"`
	Error    string          `json:"error,omitempty"`
	Took     time.Duration   `json:"took"`
}
