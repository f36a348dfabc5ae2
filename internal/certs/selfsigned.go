package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"quorate/internal/clock"
	"quorate/internal/durable"

	"go.uber.org/zap"
)

// ErrNoValidity is returned for a generated certificate with a validity of zero years.
var ErrNoValidity = errors.New("selfSignedCertValidity is invalid,it should be greater than 0: --self-signed-cert-validity")

// year is etcd's, which ignores leap days.
const year = 365 * 24 * time.Hour

// SelfSigned returns the paths of cert.pem and key.pem in dir. If either is missing it
// generates both: valid from now for the given number of years, for the hosts in a list of
// host:port, self-signed.
func SelfSigned(dir string, hosts []string, years uint, lg *zap.Logger) (certFile, keyFile string, err error) {
	if years == 0 {
		return "", "", ErrNoValidity
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if exists(certFile) && exists(keyFile) {
		return certFile, keyFile, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	certPEM, keyPEM, notAfter, err := generate(hosts, time.Duration(years)*year)
	if err != nil {
		return "", "", fmt.Errorf("generate certificate: %w", err)
	}
	lg.Warn("automatically generate certificates", zap.Time("certificate-validity-bound-not-after", notAfter))
	// Write the certificate last: it completes the pair.
	if err := durable.WriteFileMode(keyFile, keyPEM, 0o600); err != nil {
		return "", "", err
	}
	lg.Info("created key file", zap.String("path", keyFile))
	if err := durable.WriteFileMode(certFile, certPEM, 0o644); err != nil {
		return "", "", err
	}
	lg.Info("created cert file", zap.String("path", certFile))
	return certFile, keyFile, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func generate(hosts []string, validity time.Duration) (certPEM, keyPEM []byte, notAfter time.Time, err error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, nil, notAfter, err
	}
	now := clock.Now()
	notAfter = now.Add(validity)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"etcd"}},
		NotBefore:    now, NotAfter: notAfter,
		KeyUsage:              x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	for _, hostPort := range hosts {
		host, _, err := net.SplitHostPort(hostPort)
		if err != nil || host == "" {
			continue // a Unix socket has no host name
		}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, notAfter, err
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, notAfter, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, notAfter, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), notAfter, nil
}
