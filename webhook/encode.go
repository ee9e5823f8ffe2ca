package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"

	"kiln/internal/event"
)

// An envelope is an event.Event that is encoded in one go.
type envelope struct {
	SpecVersion string    `json:"specversion"`
	ID          string    `json:"id"`
	Source      string    `json:"source"`
	Type        string    `json:"type"`
	Subject     string    `json:"subject,omitempty"`
	Time        time.Time `json:"time"`
	Data        any       `json:"data"`
}

// events encodes the events of a delivery, which was received with that size at that time, one after the
// other, and hands each to put, until that returns an error. It works in space.
func (d delivery) events(p provider, size int, received time.Time, space []byte, put func(id, subject string, encoded []byte) error) error {
	via := event.Delivery{Hook: d.hook.ID, Provider: d.hook.Provider, ID: clip(p.id(d.header), maxName), Received: received.UTC(),
		Header: kept(d.header), Size: size}
	keep(&via, d, space)
	for i, f := range d.facts {
		via.Index = i
		if i > 0 {
			via.Body, via.Encoding = nil, ""
		}
		id, subject, encoded, err := encode(f, via)
		if err != nil {
			return err
		}
		if err := put(id, subject, encoded); err != nil {
			return err
		}
	}
	return nil
}

// encode returns an event's ID, where it is to be published, and its JSON.
func encode(f fact, via event.Delivery) (id, subject string, encoded []byte, err error) {
	e := envelope{SpecVersion: "1.0", Source: Prefix + via.Provider + "/" + via.Hook, Time: via.Received}
	var key []string
	switch {
	case f.push != nil:
		p := f.push
		p.Delivery, e.Data, e.Type = via, p, event.TypeGitPushed
		e.Subject = repositoryName(p.Repository) + "@" + p.Ref
		key = append(repositoryKey(p.Repository), p.Ref, p.Before, p.After, strconv.FormatBool(p.Deleted))
	case f.pull != nil:
		p := f.pull
		p.Delivery, e.Data, e.Type = via, p, event.TypePullRequestUpdated
		e.Subject = repositoryName(p.Repository) + "#" + strconv.Itoa(p.Number)
		key = append(repositoryKey(p.Repository), strconv.Itoa(p.Number), p.Action, p.HeadSHA, p.BaseRef)
	case f.rejected != nil:
		p := f.rejected
		p.Delivery, e.Data, e.Type = via, p, event.TypeDeliveryRejected
		e.Subject = p.Reason
	default:
		p := f.image
		p.Delivery, e.Data, e.Type = via, p, event.TypeRegistryPushed
		e.Subject = p.Registry + "/" + p.Repository + ":" + p.Tag
		key = []string{p.Registry, p.Repository, p.Tag, p.Digest}
	}
	key = append(key, e.Source, e.Type, via.ID, f.id, f.at)
	if via.ID == "" && f.id == "" && f.at == "" {
		// Nothing tells a repeated delivery from the same thing happening again, which must not be lost.
		key = append(key, strconv.FormatInt(via.Received.UnixNano(), 10))
	}
	e.ID = event.Hash(strings.Join(key, "\x00"))
	if encoded, err = json.Marshal(e); err != nil {
		return "", "", nil, err
	}
	return e.ID, event.DeliverySubject(e.Type, e.ID), encoded, nil
}

func repositoryName(r event.Repository) string {
	if r.FullName == "" && len(r.CloneURLs) > 0 {
		return r.CloneURLs[0]
	}
	return r.FullName
}

// repositoryKey is what identifies a repository however it is called today.
func repositoryKey(r event.Repository) []string {
	host := ""
	if u, err := url.Parse(r.WebURL); err == nil {
		host = u.Host
	}
	if r.ID != "" {
		return []string{r.Provider, host, r.ID}
	}
	return []string{r.Provider, host, r.FullName, strings.Join(r.CloneURLs, " ")}
}

// keptHeaders are the headers that a decoder reads, or that help to find a delivery at the sender. None
// of them can hold a secret.
var keptHeaders = []string{
	"Content-Type", "User-Agent",
	"X-Github-Event", "X-Github-Delivery", "X-Github-Hook-Id", "X-Github-Enterprise-Host",
	"X-Gitlab-Event", "X-Gitlab-Event-Uuid", "X-Gitlab-Webhook-Uuid", "X-Gitlab-Instance", "Idempotency-Key",
	"X-Gitea-Event", "X-Gitea-Event-Type", "X-Gitea-Delivery", "X-Gogs-Event", "X-Gogs-Delivery",
	"X-Forgejo-Event", "X-Forgejo-Event-Type", "X-Forgejo-Delivery",
	"X-Event-Key", "X-Request-Uuid", "X-Request-Id", "X-Hook-Uuid", "X-Attempt-Number",
	"X-Kiln-Delivery", "Webhook-Id", "Webhook-Timestamp",
	"Ce-Id", "Ce-Source", "Ce-Type", "Ce-Time", "Ce-Subject", "Ce-Specversion",
}

func kept(h http.Header) map[string]string {
	m := make(map[string]string, 8)
	for _, name := range keptHeaders {
		if v := h[name]; len(v) > 0 && v[0] != "" {
			m[name] = clip(v[0], maxText)
		}
	}
	return m
}

// plainBody is the size up to which a body is not worth compressing.
const plainBody = 1 << 10

// packSpace is enough to compress what most deliveries are.
const packSpace = 16 << 10

// keep stores the body of d in via, if it may be. It works in buf, if that is large enough.
func keep(via *event.Delivery, d delivery, buf []byte) {
	if holds(d.body, d.hook.Secret) || holds(d.body, d.hook.Previous) {
		via.Omitted = "the body repeats the hook's secret"
		return
	}
	if len(d.body) <= plainBody {
		via.Body = d.body
		return
	}
	packed := s2.Encode(buf, d.body)
	if len(packed) > event.MaxDeliveryBody {
		via.Omitted = "the body is above 1 MiB when compressed"
		return
	}
	via.Body, via.Encoding = packed, packedEncoding
}

// packedEncoding is the block format of s2. A forge's body of 8 KB takes 8 µs to a fourth of its size;
// gzip takes 60 µs to a fifth.
const packedEncoding = "s2"

// holds reports whether a body contains a secret, as it is or within a JSON string.
func holds(body []byte, secret Secret) bool {
	if secret == "" {
		return false
	}
	if contains(body, string(secret)) {
		return true
	}
	if !strings.ContainsFunc(string(secret), func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"\\<>&`, r) }) {
		return false // it looks the same within a JSON string
	}
	quoted, err := json.Marshal(string(secret))
	inner := bytes.Trim(quoted, `"`)
	return err == nil && string(inner) != string(secret) && bytes.Contains(body, inner)
}

// contains reports whether s is in body. It looks for what begins with the first capital or space, which
// in JSON are rarer than small letters.
func contains(body []byte, s string) bool {
	rare := max(0, strings.IndexFunc(s, func(r rune) bool { return r == ' ' || r >= 'A' && r <= 'Z' }))
	head, tail := []byte(s[:rare]), []byte(s[rare:])
	for from := 0; ; {
		i := bytes.Index(body[from:], tail)
		if i < 0 {
			return false
		}
		if bytes.HasSuffix(body[:from+i], head) {
			return true
		}
		from += i + 1
	}
}
