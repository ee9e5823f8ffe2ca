package limits

import (
	"encoding/json"
	"slices"
	"strings"
)

// optionsVariable is the name under which options travel.
const optionsVariable = "KILN_CONTAINER_OPTIONS"

// maxOptions bounds what is read of them, in bytes.
const maxOptions = 128 << 10

// Options are what is different about a container, besides its limits. The zero value changes nothing.
type Options struct {
	ReadOnly    bool     `json:"readOnly,omitempty"` // the root file system
	Hostname    string   `json:"hostname,omitempty"`
	Aliases     []string `json:"aliases,omitempty"`     // further ones, by which the run's other containers reach it
	Nameservers []string `json:"nameservers,omitempty"` // of resolv.conf, as Search and Resolver
	Search      []string `json:"search,omitempty"`
	Resolver    []string `json:"resolver,omitempty"`
	// Tmpfs are mount options of directories in memory, by where these are mounted.
	Tmpfs   map[string][]string `json:"tmpfs,omitempty"`
	Ulimits []Ulimit            `json:"ulimits,omitempty"`
	Groups  []uint32            `json:"groups,omitempty"` // further ones of the process
	// Capabilities are those to keep; nil keeps all that the container has.
	Capabilities    []string `json:"capabilities"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Pids            int64    `json:"pids,omitempty"`
	Shares          uint64   `json:"shares,omitempty"` // of processor time, relative to others
	Swap            int64    `json:"swap,omitempty"`   // memory and swap in bytes, -1 for no limit
	CPUs            string   `json:"cpus,omitempty"`   // those to be used, as Nodes
	Nodes           string   `json:"nodes,omitempty"`
	// Sysctls are settings of the kernel for the container's own network and memory that processes share.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// A Ulimit is a limit of the kernel's for each process; -1 is none.
type Ulimit struct {
	Name string `json:"name"` // nofile
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Names are the options that are set, as docker run calls them.
func (o Options) Names() []string {
	var names []string
	for _, n := range []struct {
		set  bool
		name string
	}{
		{o.ReadOnly, "--read-only"}, {o.Hostname != "", "--hostname"}, {len(o.Aliases) > 0, "--name, --network-alias"}, {len(o.Nameservers) > 0, "--dns"}, {len(o.Search) > 0, "--dns-search"},
		{len(o.Resolver) > 0, "--dns-option"}, {len(o.Tmpfs) > 0, "the options of --tmpfs, --shm-size"}, {len(o.Ulimits) > 0, "--ulimit"}, {len(o.Groups) > 0, "--group-add"},
		{o.Capabilities != nil, "--cap-drop"}, {o.NoNewPrivileges, "--security-opt no-new-privileges"}, {o.Pids > 0, "--pids-limit"},
		{o.Shares > 0, "--cpu-shares"}, {o.Swap != 0, "--memory-swap"}, {o.CPUs != "", "--cpuset-cpus"}, {o.Nodes != "", "--cpuset-mems"}, {len(o.Sysctls) > 0, "--sysctl"},
	} {
		if n.set {
			names = append(names, n.name)
		}
	}
	return names
}

// PutOptions returns env with o in it, and without what else may stand there in its place.
func PutOptions(env []string, o Options) []string {
	_, env = TakeOptions(env)
	if len(o.Names()) == 0 {
		return env
	}
	text, _ := json.Marshal(o) // texts and numbers always can be
	return append(env, optionsVariable+"="+string(text))
}

// TakeOptions returns the options in env, and env without the variable. What cannot be read changes nothing.
func TakeOptions(env []string) (Options, []string) {
	var o Options
	rest := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		value, ok := strings.CutPrefix(kv, optionsVariable+"=")
		if !ok {
			return false
		}
		var read Options
		if len(value) <= maxOptions && json.Unmarshal([]byte(value), &read) == nil {
			o = read
		}
		return true
	})
	return o, rest
}

// Namespaced reports whether a setting of the kernel is one that a container has for itself.
func Namespaced(sysctl string) bool {
	switch sysctl {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return true
	}
	return strings.HasPrefix(sysctl, "net.") || strings.HasPrefix(sysctl, "fs.mqueue.")
}
