package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
)

// issue writes a certificate that signs itself, for some names, and its key; it returns the files.
func issue(t *testing.T, dir string, serial int64, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "kiln test"}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(private)
	must(t, err)
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		must(t, os.WriteFile(file+".new", pem.EncodeToMemory(block), 0o600))
		must(t, os.Rename(file+".new", file))
	}
	return cert, key
}

func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := issue(t, dir, 1, "127.0.0.1", "kiln.test")
	var log bytes.Buffer
	c, err := openCertificate(cert, key, slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	if err := c.checkName("127.0.0.1:7070"); err != nil {
		t.Error(err)
	}
	if err := c.checkName("kiln.test"); err != nil {
		t.Error(err)
	}
	if err := c.checkName("other.test:443"); err == nil || !strings.Contains(err.Error(), "kiln.test") {
		t.Errorf("another name: %v", err)
	}
	serial := func() int64 {
		pair, _ := c.current()
		return pair.Leaf.SerialNumber.Int64()
	}
	issue(t, dir, 2, "127.0.0.1")
	if got := serial(); got != 2 {
		t.Errorf("certificate %d is used after it was renewed", got)
	}
	must(t, os.WriteFile(cert, []byte("broken"), 0o600))
	for range 3 {
		if got := serial(); got != 2 {
			t.Errorf("certificate %d is used while the file is broken", got)
		}
	}
	if n := strings.Count(log.String(), "is not used"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, &log)
	}
	issue(t, dir, 3, "127.0.0.1")
	if got := serial(); got != 3 {
		t.Errorf("certificate %d is used after it was repaired", got)
	}
	c.foretold = true
	issue(t, dir, 4, "127.0.0.1")
	before := c.trusted()
	if got := serial(); got != 3 || !c.foretell() || serial() != 3 {
		t.Errorf("certificate %d is used before others are told of it", got)
	}
	if told := c.trusted(); !strings.HasPrefix(told, before) || strings.Count(told, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("others are told to trust %s", told)
	}
	if c.foretell() || serial() != 4 || strings.Count(c.trusted(), "BEGIN CERTIFICATE") != 1 {
		t.Errorf("certificate %d is used after others were told of it", serial())
	}
	if _, err := openCertificate(cert, filepath.Join(dir, "nothing"), slog.Default()); err == nil {
		t.Error("a certificate without a key is accepted")
	}
}

// A server with TLS: its own build daemon, worker and client reach it, with a certificate that nobody else trusts.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := issue(t, dir, 1, "127.0.0.1")
	if r := runKiln(t, nil, "serve", "--data", filepath.Join(dir, "no"), "--listen", "127.0.0.1:0", "--registry-host", "kiln.test", "--tls-cert", cert, "--tls-key", key); r.code != 2 || !strings.Contains(r.err, "kiln.test") {
		t.Errorf("a certificate for another name: %+v", r)
	}
	if r := runKiln(t, nil, "serve", "--data", filepath.Join(dir, "no"), "--tls-cert", cert); r.code != 2 {
		t.Errorf("a certificate without a key: %+v", r)
	}
	s := startServer(t, "--tls-cert", cert, "--tls-key", key, "--anonymous-pull", "tls/")
	if !strings.HasPrefix(s.url, "https://127.0.0.1:") {
		t.Fatalf("the server is at %s", s.url)
	}
	host := strings.TrimPrefix(s.url, "https://")

	// Built, pushed, pulled as a base, executed; copied by a docker command.
	first := strings.TrimSpace(s.must("build", "-q", "-t", "tls/base:1", files(t, map[string]string{"Dockerfile": base})))
	task := files(t, map[string]string{"Dockerfile": "FROM $R\nRUN true\n", "kiln.yaml": "version: v1.1.0\nsteps:\n  - build: -t $Registry/tls/app:1 -f Dockerfile .\n" +
		"  - cmd: $Registry/tls/app:1 true\n  - cmd: docker pull $Registry/tls/base:1\n  - cmd: docker tag $Registry/tls/base:1 $Registry/tls/copy:1\n  - cmd: docker push $Registry/tls/copy:1\n" +
		"  - push: [$Registry/tls/app:1]\n"})
	must(t, os.WriteFile(filepath.Join(task, "Dockerfile"), []byte("FROM "+host+"/tls/base:1\nRUN true\n"), 0o644))
	s.must("run", "-q", "-f", "kiln.yaml", task)

	pool := x509.NewCertPool()
	b, err := os.ReadFile(cert)
	must(t, err)
	pool.AppendCertsFromPEM(b)
	trusting := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer trusting.CloseIdleConnections()
	for _, image := range []string{first, host + "/tls/app:1", host + "/tls/copy:1"} {
		ref, err := name.ParseReference(image)
		must(t, err)
		if _, err := remote.Image(ref, remote.WithAuth(authn.Anonymous), remote.WithTransport(trusting)); err != nil {
			t.Errorf("pull %s: %v", image, err)
		}
	}

	token, err := apiclient.ReadToken(s.data)
	must(t, err)
	remotely := []string{"KILN_SERVER=" + s.url, "KILN_TOKEN=" + token, "KILN_DATA=" + dir}
	if r := runKiln(t, remotely, "runs"); r.code != 3 || !strings.Contains(r.err, "certificate") {
		t.Errorf("from afar without --ca: %+v", r)
	}
	if r := runKiln(t, remotely, "--ca", cert, "runs"); r.code != 0 {
		t.Errorf("from afar with --ca: %+v", r)
	}
	if r := runKiln(t, append(remotely, "KILN_CA="+key), "runs"); r.code != 2 {
		t.Errorf("with a file that is no certificate: %+v", r)
	}
	if res, err := http.Get("http://" + host + "/v2/"); err == nil {
		if res.Body.Close(); res.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", res.Status)
		}
	}
	if c, err := tls.Dial("tcp", host, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Errorf("TLS 1.1 is spoken: %v", c.Close())
	}
	// Renewed, and all go on.
	issue(t, dir, 2, "127.0.0.1")
	s.must("run", "-q", "-f", "kiln.yaml", task)
}
