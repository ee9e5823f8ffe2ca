package main

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// maxSecret bounds a secret or key that is sent along with a request, in bytes.
const maxSecret = 64 << 10

// buildOptions are the options of docker build that are handed on as they are written, and the secrets that
// are read here.
type buildOptions struct {
	labels, addHosts, cacheFrom, cacheTo []string
	contexts, secrets, ssh, ulimits      []string
	network, shmSize                     string
	pull                                 bool
}

func (f *buildOptions) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.secrets, "secret", nil, "give RUN --mount=type=secret a file or variable of this host, `id=ID[,src=FILE|,env=VARIABLE]`; may be repeated")
	fl.StringArrayVar(&f.ssh, "ssh", nil, "give RUN --mount=type=ssh a private key of this host, `default=KEYFILE` or ID=KEYFILE, or one of the server, ID; may be repeated")
	fl.StringArrayVar(&f.contexts, "build-context", nil, "another context for the Dockerfile, `NAME=VALUE`: a directory in CONTEXT, a URL or docker-image://IMAGE; may be repeated")
	fl.StringArrayVar(&f.labels, "label", nil, "set a label of the image, `K=V`; may be repeated")
	fl.BoolVar(&f.pull, "pull", false, "look for newer base images")
	fl.StringArrayVar(&f.cacheFrom, "cache-from", nil, "use a cache, `IMAGE` or type=registry,ref=IMAGE; may be repeated")
	fl.StringArrayVar(&f.cacheTo, "cache-to", nil, "keep a cache, `type=inline` or type=registry,ref=IMAGE[,mode=max]; may be repeated")
	fl.StringArrayVar(&f.addHosts, "add-host", nil, "add a name to /etc/hosts of RUN, `HOST:IP`; may be repeated")
	fl.StringVar(&f.network, "network", "", "network of RUN: `default` or none")
	fl.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm of RUN, such as `64m`")
	fl.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of RUN, `NAME=SOFT[:HARD]`; may be repeated")
}

// options returns the options as docker build has them, and the values of the secrets by ID. dir is the local
// context, empty for a remote one.
func (f *buildOptions) options(c *cli, dir string) (options []string, secrets map[string]string, err error) {
	for _, o := range []struct {
		name   string
		values []string
	}{{"label", f.labels}, {"add-host", f.addHosts}, {"cache-from", f.cacheFrom}, {"cache-to", f.cacheTo}, {"ulimit", f.ulimits}} {
		for _, v := range o.values {
			options = append(options, "--"+o.name+"="+v)
		}
	}
	if f.network != "" {
		options = append(options, "--network="+f.network)
	}
	if f.shmSize != "" {
		options = append(options, "--shm-size="+f.shmSize)
	}
	if f.pull {
		options = append(options, "--pull")
	}
	for _, kv := range f.contexts {
		o, err := namedContext(kv, dir)
		if err != nil {
			return nil, nil, err
		}
		options = append(options, o)
	}
	secrets = map[string]string{}
	for flag, values := range map[string][]string{"secret": f.secrets, "ssh": f.ssh} {
		for _, v := range values {
			if flag == "ssh" && v != "" && !strings.Contains(v, "=") {
				continue // a key of the server
			}
			id, value, err := c.readSecret(flag, v)
			if err != nil {
				return nil, nil, err
			}
			if _, twice := secrets[id]; twice {
				return nil, nil, usagef("another id", "--%s %s: the id is given twice", flag, id)
			}
			secrets[id] = value
		}
	}
	for _, v := range f.ssh {
		id, _, _ := strings.Cut(v, "=")
		options = append(options, "--ssh="+id)
	}
	for _, id := range slices.Sorted(maps.Keys(secrets)) {
		if !slices.Contains(options, "--ssh="+id) {
			options = append(options, "--secret=id="+id)
		}
	}
	return options, secrets, nil
}

// namedContext makes an option of NAME=VALUE. A local directory is one inside of the context, which is sent.
func namedContext(kv, dir string) (string, error) {
	try := "--build-context NAME=VALUE, where VALUE is a directory in CONTEXT, a URL or docker-image://IMAGE"
	name, value, _ := strings.Cut(kv, "=")
	switch {
	case name == "" || value == "":
		return "", usagef(try, "--build-context %q: want NAME=VALUE", kv)
	case isRemote(value) || strings.Contains(value, "://"):
		return "--build-context=" + kv, nil
	case dir == "":
		return "--build-context=" + kv, nil // a directory in the repository
	}
	inside, ok := inContext(value, dir)
	if !ok {
		return "", usagef(try, "--build-context %s: %s is not a directory inside of %s, and nothing else is sent", name, value, dir)
	}
	return "--build-context=" + name + "=" + inside, nil
}

// readSecret reads the value of --secret or --ssh from this host.
func (c *cli) readSecret(flag, option string) (id, value string, err error) {
	file, env := "", ""
	if flag == "ssh" {
		id, file, _ = strings.Cut(option, "=")
		if id == "" || file == "" {
			return "", "", usagef("--ssh default=$HOME/.ssh/id_ed25519", "--ssh %q: want ID=KEYFILE, or the ID of a key of the server", option)
		}
	} else {
		for field := range strings.SplitSeq(option, ",") {
			switch k, v, _ := strings.Cut(field, "="); k {
			case "id":
				id = v
			case "src", "source":
				file = v
			case "env":
				env = v
			case "type":
			default:
				return "", "", usagef("--secret id=ID,src=FILE", "--secret: %q is not known", field)
			}
		}
		if id == "" || file != "" && env != "" {
			return "", "", usagef("--secret id=ID,src=FILE or --secret id=ID,env=VARIABLE", "--secret: want an id, and src or env")
		}
	}
	if file == "" {
		if env == "" {
			env = id
		}
		v, ok := c.Lookup(env)
		if !ok {
			return "", "", usagef("--secret id="+id+",src=FILE", "--secret %s: the environment variable %s is not set", id, env)
		}
		return id, v, nil
	}
	b, err := readFile(filepath.Clean(file))
	if err == nil && (len(b) > maxSecret || len(b) == 0) {
		err = usagef("", "--%s %s: %s has %d bytes; from 1 to %d can be sent", flag, id, file, len(b), maxSecret)
	}
	return id, string(b), err
}

// checkPlatforms reports what is wrong with a list of platforms.
func checkPlatforms(list string, several bool) error {
	for p := range strings.SplitSeq(list, ",") {
		if list != "" && !isPlatform(p) {
			return usagef("--platform linux/amd64", "--platform %q: want os[/arch[/variant]]", p)
		}
	}
	if strings.Contains(list, ",") && !several {
		return usagef("docker build's --platform in the task's build step", "--platform %s: a task has one platform", list)
	}
	return nil
}
