package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
)

// A farNet is a network namespace, and its link to this host.
type farNet struct {
	t    *testing.T
	name string
	link string // this host's end
}

// newFarNet makes a namespace whose one neighbour is this host, at the address that is returned.
func newFarNet(t *testing.T) (f farNet, ip string) {
	t.Helper()
	n := os.Getpid() % 250
	id := fmt.Sprintf("klnt%d", os.Getpid())
	f, ip = farNet{t, id, id + "h"}, fmt.Sprintf("10.213.%d.1", n)
	f.ip("netns", "add", f.name)
	t.Cleanup(func() { f.ip("netns", "delete", f.name) }) // the link goes with it
	f.ip("link", "add", f.link, "type", "veth", "peer", "name", id+"n", "netns", f.name)
	f.ip("address", "add", ip+"/30", "dev", f.link)
	f.ip("-n", f.name, "address", "add", fmt.Sprintf("10.213.%d.2/30", n), "dev", id+"n")
	f.ip("-n", f.name, "link", "set", "lo", "up")
	f.ip("-n", f.name, "link", "set", id+"n", "up")
	f.ip("link", "set", f.link, "up")
	f.ip("-n", f.name, "route", "add", "default", "via", ip)
	return f, ip
}

func (f farNet) ip(args ...string) {
	f.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		f.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// testNetworkIsCut cuts the network of the one worker that there is. A worker that nobody hears of for longer than
// its lease loses its run to another one, which spare starts, and serves again when it is heard. The certificate of the
// registry's process, which is below a directory, is another one in between.
func testNetworkIsCut(t *testing.T, c *cluster, net farNet, certs string, spare func()) {
	ctx := t.Context()
	box := strings.TrimSpace(c.kiln("build", "--no-wait", "-t", "cut/box:1", files(t, map[string]string{"Dockerfile": base})))
	r, err := c.record(ctx, box, ended)
	if err != nil || r.State != run.Succeeded {
		t.Fatalf("%v, %s %s", err, r.State, r.Reason)
	}
	issue(t, certs, 2, apartHost, c.ip)
	c.awaitCertificate(2)
	spec := taskFile(r.Spec.Context, "- build: -t $Registry/cut/app:$ID .\n- cmd: $Registry/cut/box:1 sleep 5\n- push: [$Registry/cut/app:$ID]\n")
	r, err = c.clients[1].Submit(ctx, apiclient.Submit{Key: "cut", Spec: spec})
	if err == nil {
		r, err = c.record(ctx, r.ID, func(r run.Run) bool {
			return r.State.Final() || len(r.Steps) > 1 && r.Steps[1].State == run.StepRunning
		})
	}
	if err != nil || r.State.Final() {
		t.Fatalf("%v, %s %s", err, r.State, r.Reason)
	}
	net.ip("link", "set", net.link, "down")
	spare()
	r, err = c.record(ctx, r.ID, func(r run.Run) bool { return r.State.Final() || r.Attempt > 1 && r.State == run.Running })
	net.ip("link", "set", net.link, "up")
	if err == nil {
		r, err = c.record(ctx, r.ID, ended)
	}
	if err != nil || r.State != run.Succeeded || r.Attempt < 2 || r.Attempts[0].Worker != "far" || len(r.Images) != 1 || r.Steps[0].Attempt != 1 || r.Steps[0].Tries != 1 {
		t.Fatalf("%v, %s %s %+v, steps %+v", err, r.State, r.Reason, r.Attempts, r.Steps)
	}
	waitFor(t, "the worker to be heard of again", func() bool { return strings.Contains(c.kiln("worker", "list"), "far ") })
	c.kiln("worker", "drain", "near")
	again := spec
	again.TaskFile = &run.TaskFileSpec{Name: "acr-task.yaml", Content: []byte("version: v1.1.0\nsteps:\n- cmd: $Registry/cut/box:1 true\n")}
	other, err := c.clients[1].Submit(ctx, apiclient.Submit{Key: "again", Spec: again})
	if err == nil {
		other, err = c.record(ctx, other.ID, ended)
	}
	if err != nil || other.State != run.Succeeded || other.Attempts[len(other.Attempts)-1].Worker != "far" {
		t.Errorf("run after the cut: %v, %s %s %+v", err, other.State, other.Reason, other.Attempts)
	}
	if status := publishIn(t, c.server(c.second, 1), "cut/app", r.ID, 1, r.Images[0].Digest); status != http.StatusConflict {
		t.Errorf("publication of the attempt that was cut off: status %d, want 409", status)
	}
	b, _ := c.open()
	pushed, finished := 0, 0
	err = b.Tail(ctx, bus.StreamEvents, event.SubjectEvents, 0, false, func(_ uint64, data []byte) bool {
		var e event.Event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Error(err)
		}
		if e.Type == event.TypeImagePushed && strings.Contains(string(e.Data), `"tag":"`+r.ID+`"`) {
			pushed++
		}
		if e.Type == event.TypeRunFinished && strings.Contains(string(e.Data), r.ID) {
			finished++
		}
		return true
	})
	if err != nil || pushed != 1 || finished != 1 {
		t.Errorf("the tag was pushed %d times and the run ended %d times, want once each: %v", pushed, finished, err)
	}
	c.first.end(syscall.SIGTERM)
	away := runKiln(t, []string{"KILN_SERVER=" + c.clients[1].BaseURL, "KILN_TOKEN=" + c.clients[1].Token}, "build", files(t, map[string]string{"Dockerfile": base}))
	if away.code == 0 || !strings.Contains(away.err, registryAway) {
		t.Errorf("without the registry: exit code %d, %s", away.code, away.err)
	}
	c.first.start()
}

// awaitCertificate waits until the first server uses a certificate.
func (c *cluster) awaitCertificate(serial int64) {
	c.t.Helper()
	waitFor(c.t, "the new certificate to be used", func() bool {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(c.clients[0].BaseURL, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64() == serial
	})
}
