package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"strings"

	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// facets are what a record is selected by.
type facets struct {
	state, cause, lane, task, uid, ref, commit string

	terms []uint32 // hashes of the names of its bases and images
	names []string // those names in full, and others that tell what a hash cannot; not stored with the others
}

// facetsOf returns the facets of a record.
func facetsOf(r run.Run) facets {
	f := facets{state: string(r.State), cause: r.Cause.Kind, lane: laneName(r.Lane), task: task.NameKey(r.Task), uid: r.TaskUID,
		ref: shortRef(r.Cause.Ref), commit: strings.ToLower(r.Cause.Commit)}
	for _, p := range []*string{&f.cause, &f.lane, &f.task, &f.uid, &f.ref, &f.commit} {
		*p = strings.ReplaceAll(*p, separator, "")
	}
	for _, b := range r.Bases {
		f.addBase(b.Ref)
	}
	for _, m := range r.Cause.Moved {
		f.addBase(m.Ref)
	}
	for _, i := range r.Images {
		f.addImage(i)
	}
	if f.commit != "" {
		f.name(nameCommit + f.commit)
	}
	return f
}

// What a name begins with says whose it is.
const (
	nameBase   = "base "
	nameImage  = "image "
	nameCommit = "commit "
)

func (f *facets) addBase(ref string) {
	if name, repository := baseName(ref); name != "" {
		f.add(nameBase+name, nameBase+repository)
	}
}

func (f *facets) addImage(i run.Image) {
	for _, of := range []string{"", ":" + i.Tag, "@" + i.Digest} {
		f.add(nameImage + i.Repository + of)
		f.name(nameImage + i.Registry + "/" + i.Repository + of)
	}
}

// add adds names that are looked for by their hashes.
func (f *facets) add(names ...string) {
	for _, n := range names {
		f.name(n)
		if h := hash(n); !slices.Contains(f.terms, h) {
			f.terms = append(f.terms, h)
		}
	}
}

// name adds a name by which it is told whether a record with the right hashes is the one that is looked for.
func (f *facets) name(n string) {
	if n = strings.ReplaceAll(n, separator, ""); !slices.Contains(f.names, n) {
		f.names = append(f.names, n)
	}
}

// packNames returns names as they are stored, each between two separators.
func packNames(names []string) []byte {
	if len(names) == 0 {
		return nil
	}
	return []byte(separator + strings.Join(names, separator) + separator)
}

// hasName reports whether packed names have one.
func hasName(packed []byte, name string) bool {
	return bytes.Contains(packed, []byte(separator+name+separator))
}

// hasCommit reports whether packed names have that of a commit whose ID begins like this.
func hasCommit(packed []byte, begin string) bool {
	return bytes.Contains(packed, []byte(separator+nameCommit+begin))
}

// packFacets returns facets as they are stored.
func packFacets(f facets) (string, []byte) {
	terms := make([]byte, 0, 4*len(f.terms))
	for _, t := range f.terms {
		terms = binary.LittleEndian.AppendUint32(terms, t)
	}
	return strings.Join([]string{f.state, f.cause, f.lane, f.task, f.uid, f.ref, f.commit}, separator), terms
}

// separator cannot be in a facet: a record's texts are cleaned of it before.
const separator = "\x1f"

// unpackFacets is the reverse of packFacets.
func unpackFacets(packed string, terms []byte) (facets, error) {
	p := strings.Split(packed, separator)
	if len(p) != 7 || len(terms)%4 != 0 {
		return facets{}, errors.New("stored facets are damaged")
	}
	f := facets{state: p[0], cause: p[1], lane: p[2], task: p[3], uid: p[4], ref: p[5], commit: p[6]}
	for ; len(terms) > 0; terms = terms[4:] {
		f.terms = append(f.terms, binary.LittleEndian.Uint32(terms))
	}
	return f, nil
}

func hash(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum32()
}

// laneName is the lane that a run waits in: runs that name none are requests.
func laneName(lane string) string { return cmp.Or(lane, string(decide.ClassManual)) }

// shortRef is a branch or tag without what its full name begins with.
func shortRef(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
}

// baseName returns the canonical name of a base image, without its digest, and its repository. Both are
// empty if ref is no reference.
func baseName(ref string) (name, repository string) {
	ref, digest, _ := strings.Cut(ref, "@")
	n, err := graph.Canonical(ref, nil)
	if err != nil {
		return "", ""
	}
	if digest != "" && n.Repository()+":latest" == string(n) && !strings.HasSuffix(ref, ":latest") {
		return n.Repository(), n.Repository() // it had no tag
	}
	return string(n), n.Repository()
}
