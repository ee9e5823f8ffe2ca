package event

import "time"

// A Permission is something that can be done with a repository of the co-located registry.
type Permission string

// Permissions. Content is manifests and blobs; metadata is what is told of them, and locks.
const (
	ContentRead   Permission = "content/read"
	ContentWrite  Permission = "content/write"
	ContentDelete Permission = "content/delete"
	MetadataRead  Permission = "metadata/read"
	MetadataWrite Permission = "metadata/write"
)

// Permissions are all of them.
func Permissions() []Permission {
	return []Permission{ContentRead, ContentWrite, ContentDelete, MetadataRead, MetadataWrite}
}

// A Grant is what may be done with some repositories.
type Grant struct {
	// Repository is the name of one, or, with a "*" at the end, how the names begin.
	Repository  string       `json:"repository"`
	Permissions []Permission `json:"permissions"`
}

// A Token is the record of a token that an administrator made. The token itself is stored nowhere.
type Token struct {
	Name string `json:"name"`
	// ID tells it from an earlier token of the same name.
	ID     string  `json:"id"`
	Hash   []byte  `json:"hash"` // SHA-256 of the token
	Grants []Grant `json:"grants"`
	// Role is what it may do with the API, as the package auth names it; empty for nothing but images.
	Role string `json:"role,omitempty"`
	// Tasks are the names, or with a "*" at the end the beginnings of names, of the tasks that it is for; none
	// means all.
	Tasks   []string  `json:"tasks,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero for never
}

// A TokenUse is the record of the last use of a token.
type TokenUse struct {
	ID   string    `json:"id"`   // of the token
	Time time.Time `json:"time"` // about a minute exactly
}
