package index

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"

	"github.com/klauspost/compress/s2"

	"kiln/internal/run"
)

// sample is a record like others. Stored records are compressed against it, so that what all of them
// have in common takes no room. Another sample is another schema.
const sample = `"step":"build"},{"registry":"localhost:7070","repository":"team/app","tag":"latest","digest":"sha256:0123456789abcdef"` +
	`,"bases":[{"ref":"docker.io/library/golang:1.26","digest":"sha256:fedcba9876543210","step":"build"}],"logEnd":1` +
	`"exitCode":0,"error":"exit code 1","status":"Failed","Canceled","Timeout","Error","approvedBy":"","needsApproval":true` +
	`"cause":{"kind":"manual","request":"","by":"admin"},"pull-request","base-image","timer","moved":[{"ref":"docker.io/library/","from":"sha256:","to":"sha256:` +
	`"taskFile":{"name":"acb.yaml","valuesName":"values.yaml","fromContext":true,"set":["` +
	`{"id":"r2abcd","task":"app","taskUid":"","status":"Succeeded","cause":{"kind":"commit","reason":"the source moved","event":"","seq":1` +
	`,"by":"","track":"","trigger":"","repository":"https://github.com/team/app.git","ref":"refs/heads/main","commit":"","author":"github:","lane":"commit"` +
	`},"attempt":1,"attempts":[{"n":1,"worker":"","instance":"","assigned":"2026-01-02T03:04:05.123456789Z","ended":"2026-01-02T03:04:05.1234Z",` +
	`"outcome":"Succeeded"}],"created":"2026-01-02T03:04:05.12345Z","started":"2026-01-02T03:04:05.1234Z","finished":"2026-01-02T03:04:05.1234Z",` +
	`"spec":{"context":"https://github.com/team/app.git#","ref":"refs/heads/main","build":{"dockerfile":"Dockerfile","images":["app:{{.Run.ID}}","app:latest"],` +
	`"buildArgs":["` + `"],"target":"","noPush":true},"platform":"linux/amd64","timeout":3600000000000,"pins":{"docker.io/library/":"sha256:` +
	`"}},"steps":[{"id":"build","kind":"build","status":"Succeeded","attempt":1,"started":"2026-01-02T03:04:05Z","finished":"2026-01-02T03:04:05Z","tries":1},` +
	`{"id":"push","kind":"push","status":"Succeeded"},{"id":"cmd","kind":"cmd","status":"Skipped"}],"images":[{"registry":"localhost:7070","repository":"app","tag":"`

var dictionary = s2.MakeDict([]byte(sample), nil)

// maxRecord bounds what a stored record may unpack to, in bytes.
const maxRecord = 16 << 20

// summary leaves out of a record what no list shows.
func summary(r run.Run) run.Run {
	r.Spec.Secrets = nil
	if r.Spec.TaskFile != nil {
		t := *r.Spec.TaskFile
		t.Content, t.Values, t.Set = nil, nil, nil
		r.Spec.TaskFile = &t
	}
	if r.Spec.Build != nil && r.Spec.Build.DockerfileInline != nil {
		b := *r.Spec.Build
		b.DockerfileInline = nil
		r.Spec.Build = &b
	}
	steps := make([]run.Step, len(r.Steps))
	for i, s := range r.Steps {
		s.Output, s.Built = nil, nil
		steps[i] = s
	}
	r.Steps = steps
	return r
}

// pack returns the record as it is stored, behind the names that it is found by.
func pack(r run.Run, names []string) ([]byte, error) {
	b, err := json.Marshal(summary(r))
	if err != nil {
		return nil, err
	}
	packed := packNames(names)
	all := binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64+len(packed)+len(b)), uint64(len(packed)))
	return dictionary.Encode(nil, append(append(all, packed...), b...)), nil
}

// unpack appends what pack has made of a record to buf, and returns where the names and the JSON are in it.
func unpack(buf, stored []byte) (all, names, record []byte, err error) {
	n, err := s2.DecodedLen(stored)
	if err != nil {
		return buf, nil, nil, err
	}
	if n > maxRecord {
		return buf, nil, nil, errors.New("the stored record is too large")
	}
	end := len(buf)
	buf = slices.Grow(buf, n)[:end+n]
	b, err := dictionary.Decode(buf[end:], stored)
	if err != nil {
		return buf[:end], nil, nil, err
	}
	size, from := binary.Uvarint(b)
	if from <= 0 || size > uint64(len(b)-from) {
		return buf[:end], nil, nil, errors.New("the stored record is damaged")
	}
	to := from + int(size)
	return buf, b[from:to:to], b[to:len(b):len(b)], nil
}
