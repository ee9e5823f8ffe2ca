package event

import "time"

// SubjectAudit carries batches of audit records, an Audits each.
const SubjectAudit = "kiln.audit"

// An Audit says that somebody has changed something, or was not let. It holds no secrets and nothing of bodies.
type Audit struct {
	Time  time.Time `json:"time"`
	Who   string    `json:"who,omitempty"`   // name of the principal; empty for nobody in particular
	Role  string    `json:"role,omitempty"`  // of the principal
	Token string    `json:"token,omitempty"` // ID of the stored token that was used
	// Method and What are what was asked for: a method of HTTP, a path without what all paths begin with and, if
	// that does not name it, the name of the thing.
	Method string `json:"method"`
	What   string `json:"what"`
	From   string `json:"from,omitempty"` // address of the client
	// Forwarded is what the client, or a proxy in front of the server, says of where the request is from.
	Forwarded string `json:"forwarded,omitempty"`
	Status    int    `json:"status"`         // of the answer, as HTTP has it
	Code      string `json:"code,omitempty"` // of the error
	// Left is how many attempts that were denied are not recorded one by one, since there were too many. Such a
	// record says nothing else.
	Left int `json:"left,omitempty"`
}

// Audits are what one message holds, in order.
type Audits struct {
	Records []Audit `json:"records"`
}
