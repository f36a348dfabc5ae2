package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.uber.org/zap"

	"quorate/internal/certs"
)

// verifyLimit bounds the verification of one endpoint, including the dial.
const verifyLimit = 5 * time.Second

// Clients finds the members' client endpoints in DNS.
type Clients struct {
	Domain, Suffix string // as in --discovery-srv and --discovery-srv-name
	Insecure       bool   // return every record without verification
	TrustedCAFile  string // verifies the endpoints; "" means the system roots
	Flags          certs.FlagNames

	lookup func(service, domain, suffix string) (*srv.SRVClients, error) // nil is the system's resolver
}

// Find returns the targets of the records _etcd-client-ssl._tcp.domain (https) and
// _etcd-client._tcp.domain (http): as URLs and, at the same indexes, with priority and
// weight; the names keep their final dot. It fails only if both lookups fail. DNS is not
// authenticated, so unless Insecure is set, Find drops the endpoints that do not present a
// TLS certificate for the domain, possibly all.
func (c Clients) Find(lg *zap.Logger) (urls []string, records []net.SRV, err error) {
	if c.lookup == nil {
		c.lookup = srv.GetClient
	}
	found, err := c.lookup("etcd-client", c.Domain, c.Suffix)
	if err != nil {
		return nil, nil, err
	}
	where := zap.String("srv-server", c.Domain)
	lg.Info("discovered cluster from SRV", where, zap.Strings("endpoints", found.Endpoints))
	reasons := make([]error, len(found.Endpoints))
	if !c.Insecure {
		lg.Info("validating discovered SRV endpoints", where, zap.Strings("endpoints", found.Endpoints))
		reasons = c.verify(found.Endpoints)
	}
	for i, u := range found.Endpoints {
		if reasons[i] == nil {
			urls = append(urls, u)
			records = append(records, *found.SRVs[i])
		}
	}
	if c.Insecure {
		return urls, records, nil
	}
	if err := errors.Join(reasons...); err != nil {
		lg.Warn("failed to validate discovered endpoints", where, zap.Strings("endpoints", urls),
			zap.String("error", strings.ReplaceAll(err.Error(), "\n", ",")))
	} else {
		lg.Info("using validated discovered SRV endpoints", where, zap.Strings("endpoints", urls))
	}
	return urls, records, nil
}

// verify returns, for each URL, why it is not trusted, nil if it is.
func (c Clients) verify(urls []string) []error {
	reasons := make([]error, len(urls))
	store, err := certs.Open(certs.Options{Flags: c.Flags, Files: certs.Files{TrustedCAFile: c.TrustedCAFile}, ServerName: strings.TrimSuffix(c.Domain, ".")})
	var wg sync.WaitGroup
	for i, u := range urls {
		addr, https := strings.CutPrefix(u, "https://")
		switch {
		case err != nil:
			reasons[i] = err
		case !https:
			reasons[i] = fmt.Errorf("%q is insecure", u)
		default:
			wg.Go(func() {
				if err := handshake(addr, store.Client()); err != nil {
					reasons[i] = fmt.Errorf("%q failed to dial (%w)", u, err)
				}
			})
		}
	}
	wg.Wait()
	return reasons
}

// handshake returns nil if the server at addr has a certificate that config accepts. A
// server that then asks for a client certificate, and rejects the connection without one,
// passes too.
func handshake(addr string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), verifyLimit)
	defer cancel()
	trusted := false
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	config.VerifyConnection = func(tls.ConnectionState) error {
		trusted = true // called once the certificate has been verified
		return nil
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	if trusted {
		return nil
	}
	return err
}
