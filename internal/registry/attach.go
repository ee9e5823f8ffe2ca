package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

const (
	maxAttachment = 256 << 10 // bytes of an attachment's content
	// maxAttached is how many attachments of one type by runs an image keeps at least; from twice as many the
	// oldest go. A run that makes the same image again attaches again.
	maxAttached = 16
	// runAnnotation names, in the manifest of an attachment, the run that has made it.
	runAnnotation = "dev.kiln.run"
	typeEmpty     = "application/vnd.oci.empty.v1+json"
)

// An Attachment is a document about an image of a publication. It becomes a manifest of its own beside the
// image, which refers to that as its subject: the image and its digest stay as they are.
type Attachment struct {
	Repository string `json:"repository"`
	// Subject is the digest of the image; the publication has a tag for it in Repository.
	Subject string `json:"subject"`
	// Type is the media type of Content, and the type by which the referrers API finds it.
	Type        string            `json:"type"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Content     []byte            `json:"content"`
}

func (a Attachment) check(tags []Tag) error {
	if !slices.ContainsFunc(tags, func(t Tag) bool { return t.Repository == a.Repository && t.Digest == a.Subject }) {
		return fmt.Errorf("%w: attachment to %s@%s, which is not published", ErrInvalid, clip(a.Repository), clip(a.Subject))
	}
	if a.Type == "" || len(a.Content) == 0 || len(a.Content) > maxAttachment {
		return fmt.Errorf("%w: attachment to %s@%s has type %q and %d bytes, want a type and 1 to %d bytes",
			ErrInvalid, a.Repository, a.Subject, clip(a.Type), len(a.Content), maxAttachment)
	}
	return nil
}

// artifact is the manifest of an attachment.
type artifact struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        artifactLink      `json:"config"`
	Layers        []artifactLink    `json:"layers"`
	Subject       artifactLink      `json:"subject"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type artifactLink struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Data      []byte `json:"data,omitempty"`
}

// Manifest returns the manifest of the attachment to a subject, by the run; an empty run leaves that out.
// Beside the content it needs the blob {}.
func (a Attachment) Manifest(subject Descriptor, run string) ([]byte, error) {
	return json.Marshal(artifact{
		SchemaVersion: 2, MediaType: typeOCIManifest, ArtifactType: a.Type, Annotations: a.notes(run),
		Config:  artifactLink{MediaType: typeEmpty, Digest: digest.FromBytes(emptyObject).String(), Size: int64(len(emptyObject)), Data: emptyObject},
		Layers:  []artifactLink{{MediaType: a.Type, Digest: digest.FromBytes(a.Content).String(), Size: int64(len(a.Content))}},
		Subject: artifactLink{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	})
}

// notes are the annotations of the attachment's manifest.
func (a Attachment) notes(run string) map[string]string {
	notes := maps.Clone(a.Annotations)
	if notes == nil {
		notes = map[string]string{}
	}
	if run != "" {
		notes[runAnnotation] = run
	}
	return notes
}

// emptyObject is the configuration of an artifact that has none.
var emptyObject = []byte("{}")

// attachAll stores the attachments of a publication and notes in out what was attached to which image.
func (t *tx) attachAll(p Publication, out []Published) error {
	for _, a := range p.Attachments {
		dgst, err := t.attach(p.Run, a)
		if err != nil {
			return err
		}
		for i := range out {
			if out[i].Repository == a.Repository && out[i].Digest == a.Subject {
				out[i].Attached = append(out[i].Attached, dgst)
			}
		}
	}
	return nil
}

// attach stores an attachment beside its image and returns the digest of its manifest. It records no event:
// nothing was pushed that could be built on. It is part of every publication of a run, so it asks for little.
func (t *tx) attach(run string, a Attachment) (string, error) {
	subject := Descriptor{Digest: a.Subject}
	var repo, others int64
	if _, err := t.row(`SELECT m.repo, m.media_type, m.size,
			(SELECT count(*) FROM manifest o WHERE o.repo = m.repo AND o.subject = m.digest AND o.artifact_type = ?)
		FROM repository r JOIN manifest m ON m.repo = r.id WHERE r.name = ? AND m.digest = ?`,
		[]any{a.Type, a.Repository, a.Subject}, &repo, &subject.MediaType, &subject.Size, &others); err != nil {
		return "", err
	}
	body, err := a.Manifest(subject, run)
	if err != nil {
		return "", err
	}
	dgst := digest.FromBytes(body).String()
	if others > 0 {
		if m, err := t.manifest(repo, dgst); err != nil || m != 0 {
			return dgst, err
		}
	}
	config, err := t.keepBlob(repo, emptyObject)
	if err != nil {
		return "", err
	}
	content, err := t.keepBlob(repo, a.Content)
	if err != nil {
		return "", err
	}
	note, err := json.Marshal(a.notes(run))
	if err != nil {
		return "", err
	}
	m, err := t.insert(`INSERT INTO manifest (repo, digest, media_type, artifact_type, subject, annotations, size, content, pushed, touched)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		repo, dgst, typeOCIManifest, a.Type, a.Subject, string(note), len(body), len(emptyObject)+len(a.Content), t.millis(), t.millis())
	if err != nil {
		return "", err
	}
	if err := t.exec(`INSERT INTO manifest_body (manifest, body) VALUES (?, ?)`, m, body); err != nil {
		return "", err
	}
	if err := t.exec(`INSERT INTO manifest_blob (manifest, blob) VALUES (?, ?), (?, ?) ON CONFLICT DO NOTHING`, m, config, m, content); err != nil {
		return "", err
	}
	if others < 2*maxAttached {
		return dgst, nil
	}
	return dgst, t.dropAttached(repo, a)
}

// keepBlob stores a small blob in a repository and returns its row.
func (t *tx) keepBlob(repo int64, content []byte) (int64, error) {
	d := digest.FromBytes(content)
	var blob int64
	var linked bool
	found, err := t.row(`SELECT id, EXISTS (SELECT 1 FROM repo_blob WHERE repo = ? AND blob = b.id) FROM blob b WHERE digest = ?`,
		[]any{repo, d.String()}, &blob, &linked)
	if err != nil || linked {
		return blob, err // its manifest will keep it
	}
	if !found {
		if blob, err = t.insertBlob(d, &spool{buf: content, size: int64(len(content))}); err != nil {
			return 0, err
		}
	}
	return blob, t.touch(repo, blob)
}

// dropAttached deletes the oldest of a subject's attachments by runs, those that are too many.
func (t *tx) dropAttached(repo int64, a Attachment) error {
	old, err := t.strings(`SELECT digest FROM manifest WHERE repo = ? AND subject = ? AND artifact_type = ?
		AND held = 0 AND json_extract(annotations, ?) IS NOT NULL ORDER BY id DESC LIMIT -1 OFFSET ?`,
		repo, a.Subject, a.Type, `$."`+runAnnotation+`"`, maxAttached)
	if err != nil {
		return err
	}
	for _, dgst := range old {
		m, err := t.manifest(repo, dgst)
		if err != nil {
			return err
		}
		if err := t.deleteManifest(m); err != nil {
			return err
		}
	}
	return nil
}
