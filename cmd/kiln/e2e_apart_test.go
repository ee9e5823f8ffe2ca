package main

import (
	"testing"
)

// apartHost is the name of a registry, which leads nowhere.
const apartHost = "registry.kiln.test"

// TestServerOfProcesses looks at a server whose processes have few roles each: one stores images, one answers, decides
// and schedules, and the workers are apart, one of them in a network of its own. The registry's process has a
// certificate that nobody else trusts, and gets another one.
func TestServerOfProcesses(t *testing.T) {
	t.Parallel()
	net, ip := newFarNet(t)
	secrets, certs := newClassified(t), t.TempDir()
	cert, key := issue(t, certs, 1, apartHost, ip)
	c := newCluster(t, ip, "", []string{"--allow-notify", "127.0.0.0/8", "--vault", secrets.vault, "--registry-login", secrets.registry.host + "=shared:store:hub-password"},
		"--tls-cert", cert, "--tls-key", key, "--registry-host", apartHost)
	c.workers = append(c.workers, c.process("far", append([]string{"nsenter", "--net=/run/netns/" + net.name}, c.workerArgs("far")...)...))
	phase := func(name string, do func(*testing.T, *cluster)) {
		t.Run(name, func(t *testing.T) {
			bound := *c
			bound.t = t
			do(t, &bound)
		})
	}
	phase("network is cut", func(t *testing.T, bound *cluster) {
		testNetworkIsCut(t, bound, net, certs, func() { c.work("near", "--allow-source", "localhost", "--vault", secrets.vault) })
	})
	phase("secrets", secrets.test)
}
