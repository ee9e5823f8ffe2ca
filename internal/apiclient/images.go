package apiclient

import "time"

// What the co-located registry holds. Sizes are bytes. A reference is a tag or a digest.
const (
	// PathRepositories: GET ?all=1&after=NAME&n=100 -> Repositories; ?repository=NAME -> Repository.
	PathRepositories = "/api/v1/registry/repositories"
	// PathManifests: GET ?repository=NAME&orderby=time_desc|time_asc&untagged=1&after=NEXT&n=100 -> Manifests;
	// with &reference=REFERENCE -> ManifestDetails.
	PathManifests = "/api/v1/registry/manifests"
	// PathReferrers: GET ?repository=NAME&reference=REFERENCE&type=ARTIFACTTYPE -> Referrers.
	PathReferrers = "/api/v1/registry/referrers"
	// PathTags: GET ?repository=NAME&after=TAG&n=100 -> Tags; with &tag=TAG -> TagDetails.
	PathTags = "/api/v1/registry/tags"
	// PathDelete: POST Delete -> Deletion. PathUntag: POST Image -> Deletion. PathLock: POST Lock -> Locks.
	PathDelete = "/api/v1/registry/delete"
	PathUntag  = "/api/v1/registry/untag"
	PathLock   = "/api/v1/registry/lock"
	// PathRollback: POST Rollback -> Rollback.
	PathRollback = "/api/v1/registry/rollback"
)

// MaxImagePage is how many repositories, manifests or tags one answer lists.
const MaxImagePage = 1000

// A Repository is one of the registry, with what it holds.
type Repository struct {
	Name      string    `json:"name"`
	Created   time.Time `json:"created"`
	Manifests int64     `json:"manifests"`
	Tags      int64     `json:"tags"`
	// Untagged are the manifests that neither a tag nor an index names, what is said about others apart.
	Untagged int64 `json:"untagged"`
	// Size is that of its blobs: Unique of those that no other repository has, and Shared of the others.
	Size   int64    `json:"size"`
	Unique int64    `json:"unique"`
	Shared int64    `json:"shared"`
	Locks  []string `json:"locks,omitempty"`
	// Internal repositories are kiln's own. What they share is not counted.
	Internal bool `json:"internal,omitempty"`
}

// Repositories are a page of the registry's repositories, by name.
type Repositories struct {
	Repositories []Repository `json:"repositories"`
	Total        Storage      `json:"total"`
	Next         string       `json:"next,omitempty"` // after= of the next page
}

// Storage is what a registry stores. What repositories share is counted once.
type Storage struct {
	Blobs int64 `json:"blobs"`
	Size  int64 `json:"size"`
}

// A Manifest is the metadata of a manifest or index.
type Manifest struct {
	Digest string `json:"digest"`
	// Tags are the first MaxManifestTags of its tags; never null.
	Tags         []string  `json:"tags"`
	Timestamp    time.Time `json:"timestamp"` // when it was pushed here first
	Updated      time.Time `json:"updated"`   // when a tag last came to it
	LastPulled   time.Time `json:"lastPulled,omitzero"`
	MediaType    string    `json:"mediaType"`
	ArtifactType string    `json:"artifactType,omitempty"`
	// Platforms are what it runs on: one of an image, all of an index.
	Platforms []string `json:"platforms,omitempty"`
	Size      int64    `json:"size"`      // of the manifest itself
	ImageSize int64    `json:"imageSize"` // of the blobs it names; of an index, of its images
	Subject   string   `json:"subject,omitempty"`
	// Untagged says that neither a tag nor an index names it, and that it is not about another.
	Untagged bool     `json:"untagged,omitempty"`
	Locks    []string `json:"locks,omitempty"`
}

// MaxManifestTags is how many tags a Manifest lists.
const MaxManifestTags = 100

// Manifests are a page of the manifests of a repository.
type Manifests struct {
	Manifests []Manifest `json:"manifests"`
	Next      string     `json:"next,omitempty"` // after= of the next page
}

// ManifestDetails are all that is known of a manifest.
type ManifestDetails struct {
	Repository string `json:"repository"`
	Manifest
	Blobs     []Blob   `json:"blobs"`             // config first
	Manifests []string `json:"manifests"`         // of an index: what it names
	Indexes   []string `json:"indexes,omitempty"` // that name it
	Referrers int64    `json:"referrers"`         // manifests about it
	Frees     int64    `json:"frees"`             // bytes that deleting it would free
}

// A Blob is what a manifest is made of. Shared says that others need it, too.
type Blob struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Shared bool   `json:"shared,omitempty"`
}

// Referrers are the manifests about another one.
type Referrers struct {
	Referrers []Referrer `json:"referrers"`
}

// A Referrer is a manifest about another one.
type Referrer struct {
	Digest       string            `json:"digest"`
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// A Tag is a tag of a repository.
type Tag struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Unique tags of runs never move.
	Unique bool     `json:"unique,omitempty"`
	Locks  []string `json:"locks,omitempty"`
}

// Tags are a page of the tags of a repository, by name.
type Tags struct {
	Tags []Tag  `json:"tags"`
	Next string `json:"next,omitempty"` // after= of the next page
}

// TagDetails are all that is known of a tag. A tag that was deleted has a history, and no digest.
type TagDetails struct {
	Repository string `json:"repository"`
	Tag
	// History is what the tag named, newest first, MaxTagHistory entries at most.
	History []TagMove `json:"history"`
}

// MaxTagHistory is how many entries of a tag's history are told.
const MaxTagHistory = 100

// A TagMove is an entry of a tag's history. Without a digest the tag was deleted.
type TagMove struct {
	Time   time.Time `json:"time"`
	Digest string    `json:"digest,omitempty"`
	Run    string    `json:"run,omitempty"`
	Step   string    `json:"step,omitempty"`
	// Exists says that the manifest is still there.
	Exists bool `json:"exists"`
}

// An Image names a repository, or with a reference something in it.
type Image struct {
	Repository string `json:"repository"`
	Reference  string `json:"reference,omitempty"`
}

// A Delete asks to delete a repository or, with a reference, the manifest that it names with all its tags,
// what is said about it, and what an index alone needs.
type Delete struct {
	Image
	DryRun bool `json:"dryRun,omitempty"` // only tell what would be deleted
}

// A Deletion is what was, or would be deleted.
type Deletion struct {
	// Manifests are the first MaxDeletedListed of them.
	Manifests []DeletedManifest `json:"manifests"`
	Count     int64             `json:"count"` // of manifests
	Tags      int64             `json:"tags"`
	// Frees are the bytes of blobs that no other image needs. Collection frees them.
	Frees  int64 `json:"frees"`
	DryRun bool  `json:"dryRun,omitempty"`
}

// MaxDeletedListed is how many manifests a Deletion lists.
const MaxDeletedListed = 1000

// A DeletedManifest is one of a Deletion.
type DeletedManifest struct {
	Repository string   `json:"repository"`
	Digest     string   `json:"digest"`
	Tags       []string `json:"tags"`
	// Why says why it goes along: "referrer", "child", "untagged"; empty for what was named.
	Why string `json:"why,omitempty"`
}

// A Lock sets and takes off locks of a repository, manifest or tag: write, delete, read, list.
type Lock struct {
	Image
	Set   []string `json:"set,omitempty"`
	Unset []string `json:"unset,omitempty"`
}

// Locks are the locks that are set.
type Locks struct {
	Locks []string `json:"locks"`
}

// A Rollback moves a tag back to what it named before. To is chosen if it is empty. From is what the tag
// named, in the answer.
type Rollback struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	From       string `json:"from,omitempty"`
	To         string `json:"to,omitempty"`
}

// PathCollect: POST Collect -> Collected. PathPurge: POST Purge -> Purged.
const (
	PathCollect = "/api/v1/registry/collect"
	PathPurge   = "/api/v1/registry/purge"
)

// A Collect asks to free the space of what nothing refers to.
type Collect struct {
	DryRun bool `json:"dryRun,omitempty"` // only count
}

// Collected is what a collection did, or would do.
type Collected struct {
	DryRun    bool          `json:"dryRun,omitempty"`
	Staged    int64         `json:"staged"`    // images that runs had staged
	Caches    int64         `json:"caches"`    // build caches
	Contexts  int64         `json:"contexts"`  // uploaded contexts
	Referrers int64         `json:"referrers"` // what was said about manifests that are gone
	Blobs     int64         `json:"blobs"`
	Freed     int64         `json:"freed"` // bytes of blobs
	Took      time.Duration `json:"took"`  // nanoseconds
}

// A Purge deletes old tags and, if asked, manifests that no tag names.
type Purge struct {
	// Filters are REPOSITORY:TAG, both regular expressions (RE2): that of the repository matches its whole
	// name, that of the tag a part of it.
	Filters []string      `json:"filters"`
	Ago     time.Duration `json:"ago"`            // since the tag moved, or the manifest lost its last one; nanoseconds
	Keep    int           `json:"keep,omitempty"` // newest of the tags that would be deleted in a repository
	// Untagged deletes manifests, too: those that neither a tag nor an index names.
	Untagged bool `json:"untagged,omitempty"`
	DryRun   bool `json:"dryRun,omitempty"`
}

// Purged is what a purge did, or would do.
type Purged struct {
	Deletion
	// Untagged are the first MaxDeletedListed tags that were deleted while their manifests stay.
	Untagged []string `json:"untagged"`
	Kept     int64    `json:"kept"` // tags and manifests that are locked, in use, or the newest
	// Refused are the first MaxDeletedListed repositories that a filter matches and that may not be purged.
	Refused []string `json:"refused,omitempty"`
}

// PathImport: POST Import -> Imported, when it is done.
const PathImport = "/api/v1/registry/import"

// An Import asks the server to copy an image from a registry.
type Import struct {
	Source string `json:"source"` // HOST/REPOSITORY:TAG or HOST/REPOSITORY@DIGEST
	// Names are what it is called here: REPOSITORY:TAG, or REPOSITORY for no tag.
	Names []string `json:"names"`
	Force bool     `json:"force,omitempty"` // move tags that name something else
	// Username and Password are for the registry; without them, those of a task's credential for it.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Imported is what an import did.
type Imported struct {
	Digest    string   `json:"digest"`
	Names     []string `json:"names"`
	Manifests int64    `json:"manifests"` // that were fetched
	Blobs     int64    `json:"blobs"`
	Size      int64    `json:"size"` // bytes of blobs
}

// PathCheck: POST CheckImages -> Checked.
const PathCheck = "/api/v1/registry/check"

// CheckImages asks whether what the registry stores is what it says it is.
type CheckImages struct {
	// Quick does not read the content of files: it finds what is missing, not what is damaged.
	Quick bool `json:"quick,omitempty"`
}

// CheckedImages is what a check of the registry has found. Each list has MaxCheckListed entries at most.
type CheckedImages struct {
	Blobs     int64 `json:"blobs"`
	Manifests int64 `json:"manifests"`
	Size      int64 `json:"size"` // bytes looked at
	// Missing are blobs without content, Damaged content that has another digest than it should, each with
	// the repositories that have it, or manifests.
	Missing []string `json:"missing"`
	Damaged []string `json:"damaged"`
	// Dangling are references of manifests to what is not there.
	Dangling []string `json:"dangling"`
	// Orphaned are files that nothing refers to.
	Orphaned []string `json:"orphaned"`
	// Miscounted are numbers in the metadata that are wrong.
	Miscounted []string `json:"miscounted"`
}

// MaxCheckListed is how many things of each kind a CheckedImages names.
const MaxCheckListed = 1000

// OK reports whether nothing is wrong. Orphaned files only take space.
func (c CheckedImages) OK() bool {
	return len(c.Missing)+len(c.Damaged)+len(c.Dangling)+len(c.Miscounted) == 0
}
