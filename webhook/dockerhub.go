package webhook

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
)

type dockerHubPush struct {
	Push struct {
		PushedAt  json.Number `json:"pushed_at"` // Unix seconds
		Pusher    string      `json:"pusher"`
		Tag       string      `json:"tag"`
		MediaType string      `json:"media_type"`
	} `json:"push_data"`
	Repository struct {
		Name string `json:"repo_name"` // owner/name
	} `json:"repository"`
}

var dockerHubShape = shapeOf[dockerHubPush]()

// decodeDockerHub decodes what Docker Hub sends. It names no digest and has no ID: the second of the
// push tells one from the next. Its callback_url is not called.
func decodeDockerHub(d delivery) (found, error) {
	var p dockerHubPush
	if err := decode(d.body, dockerHubShape, &p); err != nil {
		return found{}, err
	}
	if p.Repository.Name == "" {
		return found{}, errors.New("the delivery names no repository")
	}
	image := splitReference(dockerHub + "/" + p.Repository.Name)
	image.Provider, image.Tag, image.MediaType, image.Actor = "dockerhub", p.Push.Tag, p.Push.MediaType, p.Push.Pusher
	return images(d.hook, []fact{{image: &image, at: p.Push.PushedAt.String()}})
}

type quayPush struct {
	Repository string   `json:"repository"` // namespace/name
	DockerURL  string   `json:"docker_url"` // quay.io/namespace/name
	Tags       quayTags `json:"updated_tags"`
}

// quayTags is a list of tags; older versions send an object with the tags as keys.
type quayTags []string

// UnmarshalJSON accepts both forms.
func (t *quayTags) UnmarshalJSON(b []byte) error {
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*t = list
		return nil
	}
	var set map[string]json.RawMessage
	if err := json.Unmarshal(b, &set); err != nil {
		return errors.New("updated_tags is neither a list nor an object")
	}
	*t = slices.Sorted(maps.Keys(set))
	return nil
}

var quayShape = shapeOf[quayPush]()

// decodeQuay decodes what Quay sends about a push. It names no digests, no time and has no ID.
func decodeQuay(d delivery) (found, error) {
	var p quayPush
	if err := decode(d.body, quayShape, &p); err != nil {
		return found{}, err
	}
	if p.DockerURL == "" {
		return ignored("no image was pushed")
	}
	var pushes []fact
	for _, tag := range p.Tags {
		image := splitReference(p.DockerURL)
		image.Provider, image.Tag = "quay", tag
		pushes = append(pushes, fact{image: &image})
	}
	return images(d.hook, pushes)
}
