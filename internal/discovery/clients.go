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

// verifyLimit bounds the look at one endpoint, dialling included.
const verifyLimit = 5 * time.Second

// Clients says how to find the members' client endpoints in DNS.
type Clients struct {
	Domain, Suffix string // as in --discovery-srv and --discovery-srv-name
	Insecure       bool   // take every record as it is
	TrustedCAFile  string // vouches for the endpoints; "" means the roots of the machine
	Flags          certs.FlagNames

	lookup func(service, domain, suffix string) (*srv.SRVClients, error) // nil is DNS
}

// Find returns what the records _etcd-client-ssl._tcp.domain (https) and
// _etcd-client._tcp.domain (http) name, as URLs and, at the same places, with
// priority and weight; the names keep their final dot. Only a failure of both
// lookups is an error. DNS proves nothing, so unless Insecure, only those remain
// that show, by TLS, a certificate for the domain: perhaps none.
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

// verify says of each URL why it is not to be trusted, nil if it is.
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

// handshake returns nil if the server at addr has a certificate that config
// accepts. That it may go on to ask for ours, and refuse us without one, is
// between it and the clients.
func handshake(addr string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), verifyLimit)
	defer cancel()
	trusted := false
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	config.VerifyConnection = func(tls.ConnectionState) error {
		trusted = true // called after the certificate has been verified
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
