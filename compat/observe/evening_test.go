package observe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

// evening is the life of a cluster of two with TLS, whose certificates change.
type evening struct {
	*day
	files pki.Dir
	ca    *pki.CA
	tls   []string // addresses of the members for clients with TLS
}

// member starts a member that serves TLS to peers, and to clients in addition to plain text.
func (e *evening) member(i int, peers []string, initial string) {
	name := fmt.Sprintf("m%d", i)
	e.files.PutPair(name, e.ca.Issue(name))
	args := []string{"--log-level=info", "--heartbeat-interval=100", "--election-timeout=1000", "--v2-deprecation=write-only"}
	for _, prefix := range []string{"", "peer-"} {
		args = append(args, "--"+prefix+"cert-file="+e.files.File(name+".pem"), "--"+prefix+"key-file="+e.files.File(name+".key"),
			"--"+prefix+"trusted-ca-file="+e.files.File("ca.pem"), "--"+prefix+"client-cert-auth")
	}
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		e.t.Fatal(err)
	}
	m, err := harness.Start(harness.Config{Binary: e.program, Name: name, Dir: e.t.TempDir(), ClientAddr: addrs[0], PeerAddr: peers[i],
		AdvertisePeerURL: "https://" + peers[i], InitialCluster: initial,
		Args: append(args, "--listen-peer-urls=https://"+peers[i], "--listen-client-urls=http://"+addrs[0]+",https://"+addrs[1])})
	if err != nil {
		e.t.Fatal(err)
	}
	e.all, e.tls = append(e.all, m), append(e.tls, addrs[1])
}

// connect opens a connection to an address of a member and returns the certificate that it presents. A client
// that presents none learns of its rejection only when it reads.
func (e *evening) connect(addr string, p *pki.Pair) (shown *x509.Certificate, err error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: limit}, "tcp", addr, pki.Client(e.ca.PEM, p))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if p == nil {
		if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
			return nil, err
		}
		_, err = conn.Read(make([]byte, 1))
		if err == io.EOF {
			err = nil
		}
	}
	return conn.ConnectionState().PeerCertificates[0], err
}

// renew replaces the certificate of a member and waits until new connections see it.
func (e *evening) renew(i int, client *pki.Pair) {
	name := fmt.Sprintf("m%d", i)
	pair := e.ca.Issue(name)
	e.files.PutPair(name, pair)
	block, _ := pem.Decode(pair.Cert)
	child.Eventually(e.t, limit, e.program+" shows the new certificate", func() error {
		shown, err := e.connect(e.tls[i], client)
		if err == nil && string(shown.Raw) != string(block.Bytes) {
			err = fmt.Errorf("it shows %v", shown.SerialNumber)
		}
		return err
	})
}

// lead transfers the leadership from one member to another.
func (e *evening) lead(from, to int) {
	e.must(from, "move-leader "+e.memberID(from, e.all[to].Name()), "transferred")
	child.Eventually(e.t, limit, "the other leads", func() error {
		if at := e.leader(); at != to {
			return fmt.Errorf("m%d leads", at)
		}
		return nil
	})
}

// liveTLS goes through the evening and returns everything logged.
func liveTLS(t *testing.T, program string) lines {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	e := &evening{day: &day{t: t, program: program, ctx: ctx}, files: pki.Dir{TB: t, Path: t.TempDir()}, ca: pki.NewCA("evening")}
	defer func() {
		for _, m := range e.all {
			m.Kill()
		}
	}()
	e.files.Put("ca.pem", e.ca.PEM)
	client := e.ca.Issue("client")
	peers, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	initial := fmt.Sprintf("m0=https://%s,m1=https://%s", peers[0], peers[1])
	// The first is alone for a while.
	e.member(0, peers, initial)
	e.says(e.all[:1], func() {}, "failed to publish local member to cluster through raft")
	e.member(1, peers, initial)
	for _, m := range e.all {
		e.ready(m)
	}
	// Connections without a certificate.
	e.says(e.all[:1], func() {
		if _, err := e.connect(e.tls[0], nil); err == nil {
			t.Errorf("%s takes a client without a certificate", program)
		}
	}, "rejected connection on client endpoint")
	e.says(e.all[:1], func() {
		if _, err := e.connect(peers[0], nil); err == nil {
			t.Errorf("%s takes a member without a certificate", program)
		}
	}, "rejected connection on peer endpoint")
	// Certificates change under running members: to valid ones, to a broken one, and back.
	e.renew(0, &client)
	e.renew(1, &client)
	e.files.Put("m0.pem", []byte("broken"))
	e.connect(e.tls[0], &client) // etcd refuses
	e.renew(0, &client)
	// The first leads, after at least one transfer.
	if e.leader() == 0 {
		e.lead(0, 1)
	}
	e.lead(1, 0)
	// Peers use the new ones among themselves.
	e.says(e.all[:1], func() {
		e.stop(e.all[1])
		e.restart(e.all[1])
		e.ready(e.all[1])
	}, "established TCP streaming connection with remote peer")
	e.stop(e.all[1])
	e.stop(e.all[0]) // there is no other member to hand over to
	all := lines{}
	for _, m := range e.all {
		all.read(t, m.LogPath())
	}
	return all
}
