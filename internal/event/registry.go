package event

// TypeRegistryPushed is the type of a push to a registry that is not kiln's own.
const TypeRegistryPushed = "registry.pushed" // data: RegistryPushed

// RegistryFilter matches every push to a registry that is not kiln's own.
const RegistryFilter = "kiln.event.registry.pushed.*"

// RegistryPushed is the data of TypeRegistryPushed: somebody pushed a tag to a foreign registry. It is
// a hint: the tag may have had that digest before, and what it points at now is for the registry to say.
type RegistryPushed struct {
	Provider   string `json:"provider"`   // distribution, dockerhub ...
	Registry   string `json:"registry"`   // host[:port], as images name it
	Repository string `json:"repository"` // within the registry
	Tag        string `json:"tag"`
	Digest     string `json:"digest,omitempty"` // empty where the registry does not say
	MediaType  string `json:"mediaType,omitempty"`
	Actor      string `json:"actor,omitempty"`

	Delivery Delivery `json:"delivery"`
}
