// Package event is the wire contract: what components of kiln tell each other over NATS.
//
// It defines the types of events, the subjects they travel on and the identities that make a
// redelivery recognisable. It is pure: no clock, no randomness, no connection.
package event

import (
	"encoding/json"
	"time"
)

// Types of events: facts, in the past tense.
const (
	TypeRunRequested    = "run.requested"     // data: RunRequested
	TypeCancelRequested = "run.cancel.wanted" // data: CancelRequested
	TypeRunApproved     = "run.approved"      // data: RunApproved
	TypeRunQueued       = "run.queued"        // data: RunChanged
	TypeRunStarted      = "run.started"       // data: RunChanged
	TypeRunFinished     = "run.finished"      // data: RunChanged
	TypeImagePushed     = "image.pushed"      // data: Image
	TypeImageDeleted    = "image.deleted"     // data: Image
)

// An Event is a fact: a CloudEvents 1.0 envelope in structured JSON.
type Event struct {
	SpecVersion string          `json:"specversion"` // "1.0"
	ID          string          `json:"id"`          // stable over redelivery; unique within Source
	Source      string          `json:"source"`      // who said it: a URI reference
	Type        string          `json:"type"`
	Subject     string          `json:"subject,omitempty"` // what it is about
	Time        time.Time       `json:"time"`
	Data        json.RawMessage `json:"data,omitempty"`
}

// New returns an event with data encoded as JSON.
func New(id, source, typ string, at time.Time, data any) (Event, error) {
	d, err := json.Marshal(data)
	if err != nil {
		return Event{}, err
	}
	return Event{SpecVersion: "1.0", ID: id, Source: source, Type: typ, Time: at, Data: d}, nil
}

// An Image is the data of an image event: a tag or manifest of the co-located registry changed.
type Image struct {
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     string `json:"digest"`
	MediaType  string `json:"mediaType,omitempty"`
	// ArtifactType says what it is if it is no image; Size is that of the manifest.
	ArtifactType string `json:"artifactType,omitempty"`
	Size         int64  `json:"size,omitempty"`
	Run          string `json:"run,omitempty"` // the run that published it
}
