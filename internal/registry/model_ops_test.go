package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

func (m *model) pushBlob() {
	repo, content := m.repo(), pick(m, m.contents)
	d := m.digest(content)
	if uploads := "/v2/" + repo + "/blobs/uploads/"; m.chance(50) {
		m.want(http.StatusCreated, "POST", uploads+"?digest="+d, content)
	} else {
		res, _ := m.want(http.StatusAccepted, "POST", uploads, nil)
		m.want(http.StatusCreated, "PUT", res.Header.Get("Location")+"?digest="+d, content)
	}
	m.create(repo).blobs[d] = content
}

func (m *model) beginUpload() {
	repo := m.repo()
	res, _ := m.want(http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	m.uploads = append(m.uploads, &modelUpload{repo: repo, location: res.Header.Get("Location")})
}

func (m *model) sendChunk() {
	if len(m.uploads) == 0 {
		return
	}
	u := pick(m, m.uploads)
	chunk := bytes.Repeat([]byte{byte('0' + m.rnd.IntN(3))}, 1+m.rnd.IntN(40_000))
	status, at := http.StatusAccepted, len(u.content)
	if m.chance(20) {
		status, at = http.StatusRequestedRangeNotSatisfiable, at+1+m.rnd.IntN(100)
	} else {
		u.content = append(u.content, chunk...)
	}
	res, _ := m.want(status, "PATCH", u.location, chunk, "Content-Range", fmt.Sprintf("%d-%d", at, at+len(chunk)-1))
	m.equal("Range", res.Header.Get("Range"), fmt.Sprintf("0-%d", max(0, len(u.content)-1)))
	res, _ = m.want(http.StatusNoContent, "GET", u.location, nil)
	m.equal("Range", res.Header.Get("Range"), fmt.Sprintf("0-%d", max(0, len(u.content)-1)))
}

// takeUpload takes an upload that is going to end.
func (m *model) takeUpload() *modelUpload {
	if len(m.uploads) == 0 {
		return nil
	}
	i := m.rnd.IntN(len(m.uploads))
	u := m.uploads[i]
	m.uploads = slices.Delete(m.uploads, i, i+1)
	return u
}

func (m *model) endUpload() {
	u := m.takeUpload()
	if u == nil {
		return
	}
	if d := m.digest(u.content); m.chance(20) {
		m.want(http.StatusBadRequest, "PUT", u.location+"?digest="+m.digest([]byte("other")), nil)
	} else {
		m.want(http.StatusCreated, "PUT", u.location+"?digest="+d, nil)
		m.create(u.repo).blobs[d] = u.content
	}
	m.want(http.StatusNotFound, "GET", u.location, nil)
}

func (m *model) cancelUpload() {
	if u := m.takeUpload(); u != nil {
		m.want(http.StatusNoContent, "DELETE", u.location, nil)
		m.want(http.StatusNotFound, "PATCH", u.location, []byte("x"))
	}
}

func (m *model) mountBlob() {
	from, to, content := m.repo(), m.repo(), pick(m, m.contents)
	d := m.digest(content)
	query, found := "?mount="+d, false
	if m.chance(70) {
		query += "&from=" + from
		_, found = m.existing(from).blobs[d]
	} else {
		for _, r := range m.repos {
			_, has := r.blobs[d]
			found = found || has
		}
	}
	if !found {
		res, _ := m.want(http.StatusAccepted, "POST", "/v2/"+to+"/blobs/uploads/"+query, nil)
		m.want(http.StatusNoContent, "DELETE", res.Header.Get("Location"), nil)
		return
	}
	m.want(http.StatusCreated, "POST", "/v2/"+to+"/blobs/uploads/"+query, nil)
	m.create(to).blobs[d] = content
}

func (m *model) readBlob() {
	repo, content := m.repo(), pick(m, m.contents)
	d := m.digest(content)
	path := "/v2/" + repo + "/blobs/" + d
	if _, ok := m.existing(repo).blobs[d]; !ok {
		m.want(http.StatusNotFound, "GET", path, nil)
		return
	}
	_, b := m.want(http.StatusOK, "GET", path, nil)
	m.equal("content", bytes.Equal(b, content), true)
	if n := len(content); n > 0 {
		from := m.rnd.IntN(n)
		to := from + m.rnd.IntN(n-from)
		res, b := m.want(http.StatusPartialContent, "GET", path, nil, "Range", fmt.Sprintf("bytes=%d-%d", from, to))
		m.equal("Content-Range", res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to, n))
		m.equal("part", bytes.Equal(b, content[from:to+1]), true)
	}
}

func (m *model) deleteBlob() {
	repo := m.repo()
	d := m.digest(pick(m, m.contents))
	r, path := m.existing(repo), "/v2/"+repo+"/blobs/"+d
	switch _, ok := r.blobs[d]; {
	case !ok:
		m.want(http.StatusNotFound, "DELETE", path, nil)
	case r.needed(d):
		m.want(http.StatusMethodNotAllowed, "DELETE", path, nil)
	default:
		m.want(http.StatusAccepted, "DELETE", path, nil)
		delete(r.blobs, d)
	}
}

// link writes a descriptor.
func link(mediaType, dgst string, size int) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, dgst, size)
}

// pushImage pushes an image of random blobs, which are not always there, or something about a manifest.
func (m *model) pushImage() {
	repo := m.repo()
	r := m.existing(repo)
	x := modelManifest{mediaType: ociManifest, artifactType: "application/x." + strconv.Itoa(m.rnd.IntN(3))}
	complete := true
	blob := func(mediaType string, elsewhere bool) string {
		content := pick(m, m.contents)
		d := m.digest(content)
		if have := slices.Sorted(maps.Keys(r.blobs)); len(have) > 0 && m.chance(90) {
			d = pick(m, have)
			content = r.blobs[d]
		}
		if _, ok := r.blobs[d]; ok {
			x.blobs = append(x.blobs, d)
		} else {
			complete = complete && elsewhere
		}
		return link(mediaType, d, len(content))
	}
	config := blob(x.artifactType, false)
	var layers []string
	for range m.rnd.IntN(4) {
		if m.chance(10) {
			layers = append(layers, blob("application/vnd.oci.image.layer.nondistributable.v1.tar", true))
		} else {
			layers = append(layers, blob("application/vnd.oci.image.layer.v1.tar", false))
		}
	}
	subject := ""
	if m.chance(30) {
		x.subject = m.someManifest(repo)
		subject = `,"subject":` + link(ociManifest, x.subject, 1)
	}
	x.body = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, ociManifest, config, strings.Join(layers, ","), subject)
	m.pushManifest(repo, x, complete)
}

func (m *model) pushIndex() {
	repo := m.repo()
	r := m.existing(repo)
	x := modelManifest{mediaType: ociIndex}
	complete := true
	var links []string
	for range m.rnd.IntN(3) {
		d := m.someManifest(repo)
		child, ok := r.manifests[d]
		complete = complete && ok
		x.children = append(x.children, d)
		links = append(links, link(child.mediaType, d, len(child.body)))
	}
	x.body = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(links, ","))
	m.pushManifest(repo, x, complete)
}

// someManifest returns the digest of a manifest, now and then of one that does not exist.
func (m *model) someManifest(repo string) string {
	if have := slices.Sorted(maps.Keys(m.existing(repo).manifests)); len(have) > 0 && m.chance(90) {
		return pick(m, have)
	}
	return m.digest([]byte("no manifest"))
}

func (m *model) tag() string { return "t" + strconv.Itoa(m.rnd.IntN(6)) }

// pushManifest pushes x under a tag, a digest, or a digest and tags. One that is there already needs nothing.
func (m *model) pushManifest(repo string, x modelManifest, complete bool) {
	d, path := digest.FromBytes(x.body).String(), "/v2/"+repo+"/manifests/"
	var tags []string
	switch m.rnd.IntN(3) {
	case 0:
		tags = []string{m.tag()}
		path += tags[0]
	case 1:
		d = m.digest(x.body)
		path += d
	default:
		d, tags = m.digest(x.body), []string{m.tag(), m.tag()}
		path += d + "?" + url.Values{"tag": tags}.Encode()
	}
	_, there := m.existing(repo).manifests[d]
	if !complete && !there {
		_, b := m.want(http.StatusBadRequest, "PUT", path, x.body, "Content-Type", x.mediaType)
		m.equal("code", code(m.t, b), "MANIFEST_BLOB_UNKNOWN")
		return
	}
	res, _ := m.want(http.StatusCreated, "PUT", path, x.body, "Content-Type", x.mediaType)
	m.equal("digest", res.Header.Get("Docker-Content-Digest"), d)
	m.equal("OCI-Subject", res.Header.Get("OCI-Subject"), x.subject)
	r := m.create(repo)
	if !there {
		r.manifests[d] = x
	}
	for _, tag := range tags {
		r.tags[tag] = d
	}
}

func (m *model) readManifest() {
	repo := m.repo()
	r := m.existing(repo)
	ref := m.someManifest(repo)
	d := ref
	if m.chance(50) {
		ref = m.tag()
		d = r.tags[ref]
	}
	m.checkManifest(repo, ref, d, pick(m, []string{"GET", "HEAD"}))
}

// checkManifest reads a manifest by ref, which must be what d is.
func (m *model) checkManifest(repo, ref, d, method string) {
	m.t.Helper()
	x, ok := m.existing(repo).manifests[d]
	if !ok {
		m.want(http.StatusNotFound, method, "/v2/"+repo+"/manifests/"+ref, nil)
		return
	}
	res, b := m.want(http.StatusOK, method, "/v2/"+repo+"/manifests/"+ref, nil)
	m.equal("digest", res.Header.Get("Docker-Content-Digest"), d)
	m.equal("media type", res.Header.Get("Content-Type"), x.mediaType)
	m.equal("size", res.ContentLength, len(x.body))
	if method == "GET" {
		m.equal("manifest", string(b), string(x.body))
	}
}

func (m *model) deleteTag() {
	repo, tag := m.repo(), m.tag()
	status := http.StatusNotFound
	if r := m.existing(repo); r.tags[tag] != "" {
		status = http.StatusAccepted
		delete(r.tags, tag)
	}
	m.want(status, "DELETE", "/v2/"+repo+"/manifests/"+tag, nil)
}

func (m *model) deleteManifest() {
	repo := m.repo()
	d, r := m.someManifest(repo), m.existing(repo)
	path := "/v2/" + repo + "/manifests/" + d
	switch _, ok := r.manifests[d]; {
	case !ok:
		m.want(http.StatusNotFound, "DELETE", path, nil)
	case r.needed(d):
		m.want(http.StatusMethodNotAllowed, "DELETE", path, nil)
	default:
		m.want(http.StatusAccepted, "DELETE", path, nil)
		delete(r.manifests, d)
		maps.DeleteFunc(r.tags, func(_, to string) bool { return to == d })
	}
}

func (m *model) listTags() {
	repo := m.repo()
	m.checkTags(repo, 1+m.rnd.IntN(4))
}

// checkTags lists the tags of a repository, n at a time.
func (m *model) checkTags(repo string, n int) {
	m.t.Helper()
	r, ok := m.repos[repo]
	if !ok {
		m.want(http.StatusNotFound, "GET", "/v2/"+repo+"/tags/list", nil)
		return
	}
	all := strings.Join(pages(m.t, m.r, fmt.Sprintf("/v2/%s/tags/list?n=%d", repo, n)), " ")
	m.equal("tags of "+repo, all, strings.Join(slices.Sorted(maps.Keys(r.tags)), " "))
}

func (m *model) listRepositories() {
	var names []string
	for name, r := range m.repos {
		if len(r.manifests) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	got := strings.Join(pages(m.t, m.r, "/v2/_catalog?n="+strconv.Itoa(1+m.rnd.IntN(3))), " ")
	m.equal("repositories", got, strings.Join(names, " "))
}

func (m *model) listReferrers() {
	repo, artifactType := m.repo(), ""
	if m.chance(50) {
		artifactType = "application/x." + strconv.Itoa(m.rnd.IntN(3))
	}
	m.checkReferrers(repo, m.someManifest(repo), artifactType)
}

func (m *model) checkReferrers(repo, subject, artifactType string) {
	m.t.Helper()
	_, b := m.want(http.StatusOK, "GET", "/v2/"+repo+"/referrers/"+subject+"?artifactType="+artifactType, nil)
	var list struct {
		Manifests []struct{ Digest, ArtifactType string }
	}
	if err := json.Unmarshal(b, &list); err != nil {
		m.t.Fatal(err)
	}
	got := []string{}
	for _, d := range list.Manifests {
		got = append(got, d.Digest)
	}
	slices.Sort(got)
	m.equal("referrers of "+subject+" in "+repo, got, m.existing(repo).referrers(subject, artifactType))
}
