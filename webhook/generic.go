package webhook

import (
	"errors"
	"fmt"

	"kiln/internal/event"
)

// A genericPayload is the documented body of the generic hook.
type genericPayload struct {
	Type string `json:"type"`

	Repository string   `json:"repository"`
	Ref        string   `json:"ref"`
	Before     string   `json:"before"`
	After      string   `json:"after"`
	Files      []string `json:"files"`
	Message    string   `json:"message"`
	Pusher     string   `json:"pusher"`

	Image  string `json:"image"`
	Digest string `json:"digest"`
}

var genericShape = shapeOf[genericPayload]()

// decodeGeneric decodes the body that the package's doc describes.
func decodeGeneric(d delivery) (found, error) {
	var p genericPayload
	if err := decode(d.body, genericShape, &p); err != nil {
		return found{}, err
	}
	switch p.Type {
	case "ping":
		return pong()
	case event.TypeGitPushed:
		return genericPushed(p)
	case event.TypeRegistryPushed:
		image := splitReference(p.Image)
		if p.Digest != "" {
			image.Digest = p.Digest
		}
		image.Provider, image.Actor = "generic", clip(p.Pusher, maxText)
		if image.Tag == "" {
			return found{}, fmt.Errorf("image %q has no tag", clip(p.Image, maxName))
		}
		f, err := images(d.hook, []fact{{image: &image}})
		if err == nil && f.ignored != "" {
			err = errors.New(f.ignored) // whoever wrote this wants to know
		}
		return f, err
	}
	return found{}, fmt.Errorf("type %q is neither %s nor %s", clip(p.Type, maxName), event.TypeGitPushed, event.TypeRegistryPushed)
}

func genericPushed(p genericPayload) (found, error) {
	if !isRef(p.Ref) {
		return found{}, fmt.Errorf("ref %q is not a branch or tag in full, such as refs/heads/main", clip(p.Ref, maxName))
	}
	e := &event.GitPushed{Repository: event.Repository{Provider: "generic", CloneURLs: links(p.Repository)}, Ref: p.Ref,
		Before: p.Before, After: p.After, Deleted: p.After != "" && notZero(p.After) == "", HeadMessage: clip(p.Message, maxMessage), Pusher: person("", p.Pusher, "", "")}
	if p.Before == "" && p.After == "" {
		if err := known(e.Repository); err != nil {
			return found{}, err
		}
		e.FilesUnknown = true
		return found{facts: []fact{{push: e}}}, nil // just a hint to look
	}
	var files fileLists
	if p.Files != nil && notZero(p.After) != "" {
		e.Commits = []event.Commit{{ID: p.After, Files: files.add(p.Files)}}
	}
	created := p.Before != "" && notZero(p.Before) == ""
	f, err := pushed(e, p.Files == nil || files.unknown)
	if len(f.facts) == 1 && !e.Deleted {
		e.Created = created // an absent before does not say so
	}
	return f, err
}
