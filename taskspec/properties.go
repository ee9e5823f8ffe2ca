package taskspec

import "strings"

// The tables of this file are the only list of the language's properties.

// What a property has an effect on, if not on every kind of step.
var (
	onContainers = []Kind{KindBuild, KindCmd}
	onBuild      = []Kind{KindBuild}
	onCmd        = []Kind{KindCmd}
)

const noEffect = "has no effect"

var taskTable = newTable("", "A task: steps that build, run and push images.", []property[document]{
	{name: "version", form: form{def: "version"}, doc: "Version of the language; v1.1.0 turns aliases on, and a file without one is v1.0.0.",
		set: func(p *parser, d *document, _ place, f field) { d.version = p.version(f.value) }},
	{name: "steps", form: form{list: true, object: stepTable.schema}, doc: "What the task does, one step after the other unless they say otherwise with when.",
		set: func(p *parser, d *document, _ place, f field) { d.steps = p.steps(f.value) }},
	{name: "stepTimeout", form: seconds, doc: "Time limit of a step that has none of its own, in seconds; 600 if it is not set.",
		set: func(p *parser, d *document, at place, f field) { d.stepTimeout = p.seconds(at, f.name, f.value) }},
	{name: "env", form: texts, doc: "NAME=VALUE entries that every build and cmd step gets, unless it sets the name itself.",
		set: func(p *parser, d *document, at place, f field) { d.env = p.itemList(at, f.name, f.value) }},
	{name: "workingDirectory", form: oneText, doc: "Directory of steps that name none: relative to /workspace, or absolute.",
		set: func(p *parser, d *document, at place, f field) { d.workdir = item{p.str(at, f.name, f.value), f.value} }},
	{name: "secrets", form: form{list: true, object: secretTable.schema}, doc: "Values that a secret provider delivers, as {{.Secrets.ID}}.",
		set: func(p *parser, d *document, _ place, f field) { d.secrets, _ = p.secretList(f.value) }},
	{name: "networks", form: form{list: true, object: networkTable.schema}, doc: "Networks that steps can join; without any, all steps meet on one.",
		set: func(p *parser, d *document, _ place, f field) { d.networks = p.networkList(f.value) }},
	{name: "volumes", form: form{list: true, object: volumeTable.schema}, doc: "Volumes of secret files that steps can mount.",
		set: func(p *parser, d *document, _ place, f field) { d.volumes = p.volumeList(f.value) }},
	{name: "alias", form: form{object: aliasTable.schema}, doc: "Short names for texts, written $NAME; needs version v1.1.0.",
		set: func(p *parser, _ *document, _ place, f field) { p.strayAlias(f) }},
})

var secretTable = newTable("secrets", "A value from a secret provider.", []property[Secret]{
	{name: "id", form: oneText, doc: "Name under which templates find the value: {{.Secrets.ID}}.",
		set: func(p *parser, s *Secret, at place, f field) { s.ID = p.str(at, f.name, f.value) }},
	{name: "keyvault", form: oneText, doc: "Where the value is: https://VAULT/secrets/NAME or https://VAULT/secrets/NAME/VERSION.",
		set: func(p *parser, s *Secret, at place, f field) {
			s.KeyVault = strings.ToLower(p.str(at, f.name, f.value))
		}},
	{name: "clientID", form: oneText, doc: "UUID of the identity that reads the value.",
		set: func(p *parser, s *Secret, at place, f field) { s.ClientID = p.str(at, f.name, f.value) }},
})

var networkTable = newTable("networks", "A network.", []property[Network]{
	{name: "name", form: oneText, doc: "Name that steps join it by.",
		set: func(p *parser, n *Network, at place, f field) { n.Name = p.str(at, f.name, f.value) }},
	{name: "driver", form: oneText, doc: "Driver, such as bridge.",
		set: func(p *parser, n *Network, at place, f field) { n.Driver = p.str(at, f.name, f.value) }},
	{name: "ipv6", form: oneBool, doc: "Whether it has IPv6.",
		set: func(p *parser, n *Network, at place, f field) { n.IPv6 = p.boolean(at, f.name, f.value) }},
	{name: "skipCreation", form: oneBool, doc: "Whether it exists already and stays.",
		set: func(p *parser, n *Network, at place, f field) { n.SkipCreation = p.boolean(at, f.name, f.value) }},
	{name: "isDefault", form: oneBool, doc: "Whether steps that name no network join it; the last one counts.",
		set: func(p *parser, n *Network, at place, f field) { n.Default = p.boolean(at, f.name, f.value) }},
})

var volumeTable = newTable("volumes", "A volume of secret files.", []property[volumeNode]{
	{name: "name", form: oneText, doc: "Name that steps mount it by: letters, digits, _ and -.",
		set: func(p *parser, v *volumeNode, at place, f field) { v.Name = p.str(at, f.name, f.value) }},
	{name: "secret", form: form{def: "files"}, doc: "Its files: name to content in base64, as {{... | b64enc}} makes it.",
		set: func(p *parser, v *volumeNode, _ place, f field) { v.Files, v.declared = p.volumeFiles(f.value) }},
})

var mountTable = newTable("volumeMounts", "A volume and where a step finds it.", []property[mountNode]{
	{name: "name", form: oneText, doc: "Name of the volume.",
		set: func(p *parser, m *mountNode, at place, f field) { m.Volume = p.str(at, f.name, f.value) }},
	{name: "mountPath", form: oneText, doc: "Absolute path of the directory in the step.",
		set: func(p *parser, m *mountNode, at place, f field) { m.Path = p.str(at, f.name, f.value) }},
})

var aliasTable = newTable("alias", "Short names for texts.", []property[aliasNode]{
	{name: "src", form: texts, doc: "Files of aliases, each a flat map of names to texts; a later one overrides an earlier one.",
		set: func(p *parser, a *aliasNode, _ place, f field) { p.readAliasFiles(a, f.value) }},
	{name: "values", form: form{def: "texts"}, doc: "Aliases: names of letters and digits, and their texts. They override those of files and the predefined ones.",
		set: func(p *parser, a *aliasNode, _ place, f field) { p.readAliasMap(a.inline, f.name, f.value) }},
	{name: "directive", form: oneText, doc: "The character to write instead of $.",
		set: func(p *parser, _ *aliasNode, _ place, f field) { p.readDirective(f.value) }},
})

var stepTable = newTable("", "A step. It has exactly one of build, cmd and push.", []property[rawStep]{
	{name: "id", form: oneText, doc: "Name of the step, which when refers to and under which other steps reach it on the network.",
		set: func(*parser, *rawStep, place, field) {}}, // is decoded before all others, because messages name it
	{name: "build", form: oneText, doc: "Builds an image: the arguments of docker build.",
		set: func(p *parser, s *rawStep, at place, f field) {
			p.kind(s, func() { s.build = item{p.str(at, f.name, f.value), f.value} })
		}},
	{name: "cmd", form: oneText, doc: "Runs a container: [docker run flags] IMAGE [ARGUMENT]...",
		set: func(p *parser, s *rawStep, at place, f field) {
			p.kind(s, func() { s.cmd = item{p.str(at, f.name, f.value), f.value} })
		}},
	{name: "push", form: texts, doc: "Publishes images that earlier steps built: a list of references.",
		set: func(p *parser, s *rawStep, at place, f field) {
			p.kind(s, func() { s.push = p.itemList(at, f.name, f.value) })
		}},
	{name: "when", form: texts, doc: `Steps to wait for; ["-"] waits for nothing, and without it a step waits for the one above.`,
		set: func(p *parser, s *rawStep, at place, f field) { s.when = p.itemList(at, f.name, f.value) }},
	{name: "timeout", form: seconds, doc: "Time limit in seconds, over all attempts and repetitions.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Timeout = p.seconds(at, f.name, f.value) }},
	{name: "startDelay", form: seconds, doc: "Seconds to wait before the step; not part of its time limit.",
		set: func(p *parser, s *rawStep, at place, f field) { s.StartDelay = p.seconds(at, f.name, f.value) }},
	{name: "retries", form: count, on: onContainers, doc: "Further attempts after a failure.",
		set: func(p *parser, s *rawStep, at place, f field) {
			s.Retries, s.retryNode = p.integer(at, f.name, f.value), f.value
		}},
	{name: "retryDelay", form: seconds, on: onContainers, doc: "Seconds between attempts; 5 if it is not set.",
		set: func(p *parser, s *rawStep, at place, f field) { s.RetryDelay = p.seconds(at, f.name, f.value) }},
	{name: "retryOnErrors", form: texts, on: onContainers, doc: "Try again only if one of these texts occurs in the output.",
		set: func(p *parser, s *rawStep, at place, f field) { s.RetryOn = p.stringList(at, f.name, f.value) }},
	{name: "repeat", form: count, on: onContainers, doc: "How often the step runs again after the first time, whether it fails or not.",
		set: func(p *parser, s *rawStep, at place, f field) {
			s.Repeat, s.repeatNode = p.integer(at, f.name, f.value), f.value
		}},
	{name: "ignoreErrors", form: oneBool, doc: "Whether a failure counts as success.",
		set: func(p *parser, s *rawStep, at place, f field) { s.IgnoreErrors = p.boolean(at, f.name, f.value) }},
	{name: "workingDirectory", form: oneText, on: onContainers, doc: "Directory of the step: relative to /workspace, or absolute.",
		set: func(p *parser, s *rawStep, at place, f field) { s.workdir = item{p.str(at, f.name, f.value), f.value} }},
	{name: "disableWorkingDirectoryOverride", form: oneBool, on: onContainers, doc: "Whether the image's own working directory applies.",
		set: func(p *parser, s *rawStep, at place, f field) { s.KeepImageWorkdir = p.boolean(at, f.name, f.value) }},
	{name: "entryPoint", form: oneText, on: onCmd, doc: "Replaces the image's entrypoint; one word.",
		set: func(p *parser, s *rawStep, at place, f field) {
			s.entryPoint = item{p.str(at, f.name, f.value), f.value}
		}},
	{name: "env", form: texts, on: onContainers, doc: "NAME=VALUE entries; they override those of the task.",
		set: func(p *parser, s *rawStep, at place, f field) { s.env = p.itemList(at, f.name, f.value) }},
	{name: "user", form: oneText, on: onContainers, doc: "User, or user:group, by name or number.",
		set: func(p *parser, s *rawStep, at place, f field) { s.user = item{p.str(at, f.name, f.value), f.value} }},
	{name: "network", form: oneText, on: onContainers, doc: "Name of a network, or host, or none.",
		set: func(p *parser, s *rawStep, at place, f field) { s.network = item{p.str(at, f.name, f.value), f.value} }},
	{name: "isolation", form: oneText, on: onContainers, doc: "Isolation technology of the container.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Isolation = p.str(at, f.name, f.value) }},
	{name: "cpus", form: oneText, on: onContainers, doc: "Number of processors, such as 1.5.",
		set: func(p *parser, s *rawStep, at place, f field) { s.CPUs = p.str(at, f.name, f.value) }},
	{name: "expose", form: texts, on: onContainers, doc: "Ports that other steps can reach.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Expose = p.stringList(at, f.name, f.value) }},
	{name: "ports", form: texts, on: onContainers, doc: "Ports that are published: HOST:CONTAINER.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Ports = p.stringList(at, f.name, f.value) }},
	{name: "privileged", form: oneBool, on: onContainers, doc: "Whether the container has extended privileges.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Privileged = p.boolean(at, f.name, f.value) }},
	{name: "keep", form: oneBool, on: onContainers, doc: "Whether the container stays until the end of the run.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Keep = p.boolean(at, f.name, f.value) }},
	{name: "detach", form: oneBool, on: onContainers, doc: "Whether the step is done once its container has started, which then runs until the end of the run.",
		set: func(p *parser, s *rawStep, at place, f field) { s.Detach = p.boolean(at, f.name, f.value) }},
	{name: "pull", form: oneBool, on: onCmd, doc: "Whether the image is pulled even if it is there.",
		set: func(p *parser, s *rawStep, at place, f field) { s.pull = p.boolean(at, f.name, f.value) }},
	{name: "cmdDownloadRetries", form: oneNumber, on: onCmd, doc: "Further attempts of that pull.",
		set: func(p *parser, s *rawStep, at place, f field) { s.pullRetries = p.integer(at, f.name, f.value) }},
	{name: "cmdDownloadRetryDelay", form: seconds, on: onCmd, doc: "Seconds between them.",
		set: func(p *parser, s *rawStep, at place, f field) { s.pullDelay = p.seconds(at, f.name, f.value) }},
	{name: "cache", form: form{def: "cache"}, on: onBuild, doc: "enabled or disabled: whether the build's cache is kept in the registry.",
		set: func(p *parser, s *rawStep, at place, f field) { s.cache = item{p.str(at, f.name, f.value), f.value} }},
	{name: "volumeMounts", form: form{list: true, object: mountTable.schema}, doc: "Volumes that the step sees; build and cmd steps only.",
		set: func(p *parser, s *rawStep, _ place, f field) { s.mounts = p.mountList(s, f.value) }},

	{name: "exitedWith", form: form{def: "any"}, ignored: noEffect, check: (*parser).checkIntegers},
	{name: "exitedWithout", form: form{def: "any"}, ignored: noEffect, check: (*parser).checkIntegers},
	{name: "secret", form: form{def: "any"}, ignored: noEffect},
	{name: "volumeMount", form: form{def: "any"}, ignored: "is ignored; the property is volumeMounts, a list"},
	{name: "downloadRetries", form: form{def: "any"}, ignored: "is ignored; the property is cmdDownloadRetries"},
	{name: "downloadRetryDelay", form: form{def: "any"}, ignored: "is ignored; the property is cmdDownloadRetryDelay"},
})
