package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
)

// defaultJWTTTL is the TTL of a signed token if the option ttl is missing.
const defaultJWTTTL = 5 * time.Minute

// signer signs and verifies tokens.
type signer struct {
	method  jwt.SigningMethod
	private any // signing key, nil if only the public key is configured
	check   any // verification key
	ttl     time.Duration
}

var errMethod = errors.New("the token is not signed with the configured method")

func newSigner(options map[string]string, read func(string) ([]byte, error), lg *zap.Logger) (*signer, error) {
	s := &signer{ttl: defaultJWTTTL}
	var (
		public, private []byte
		err             error
	)
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value := options[name]
		switch name {
		case "sign-method":
			s.method = jwt.GetSigningMethod(value)
		case "pub-key":
			public, err = readKey(value, read)
		case "priv-key":
			private, err = readKey(value, read)
		case "ttl":
			if value != "" {
				s.ttl, err = time.ParseDuration(value)
			}
		default:
			lg.Warn("unknown option of --auth-token", zap.String("option", name))
		}
		if err != nil {
			lg.Error("cannot use an option of --auth-token", zap.String("option", name), zap.Error(err))
			return nil, ErrInvalidAuthOpts
		}
	}
	if s.method == nil {
		lg.Error("--auth-token needs sign-method=, such as RS256, PS256, ES256, HS256 or EdDSA", zap.String("sign-method", options["sign-method"]))
		return nil, ErrInvalidAuthOpts
	}
	return s, s.loadKeys(private, public)
}

func readKey(path string, read func(string) ([]byte, error)) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	return read(path)
}

// publicKey is the interface that all public keys of the standard library implement.
type publicKey interface{ Equal(x crypto.PublicKey) bool }

// loadKeys parses the keys for the method. A private key alone is enough; a public
// key alone only verifies tokens that other members sign.
func (s *signer) loadKeys(private, public []byte) error {
	var (
		priv crypto.Signer
		pub  publicKey
		err  error
	)
	switch s.method.(type) {
	case *jwt.SigningMethodHMAC:
		if len(private) == 0 {
			return ErrMissingKey
		}
		s.private, s.check = private, private
		return nil
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		priv, pub, err = parsePair(private, public, jwt.ParseRSAPrivateKeyFromPEM, jwt.ParseRSAPublicKeyFromPEM)
	case *jwt.SigningMethodECDSA:
		priv, pub, err = parsePair(private, public, jwt.ParseECPrivateKeyFromPEM, jwt.ParseECPublicKeyFromPEM)
	case *jwt.SigningMethodEd25519:
		priv, pub, err = parsePair(private, public, edPrivate, edPublic)
	default:
		return fmt.Errorf("unsupported signing method: %T", s.method)
	}
	switch {
	case err != nil:
		return err
	case priv == nil && pub == nil:
		return ErrMissingKey
	case priv == nil:
		s.check = pub
		return nil
	case pub != nil && !pub.Equal(priv.Public()):
		return ErrKeyMismatch
	}
	s.private, s.check = priv, priv.Public()
	return nil
}

func parsePair[Priv crypto.Signer, Pub publicKey](private, public []byte, parsePriv func([]byte) (Priv, error), parsePub func([]byte) (Pub, error)) (crypto.Signer, publicKey, error) {
	var (
		priv crypto.Signer
		pub  publicKey
	)
	if len(private) > 0 {
		k, err := parsePriv(private)
		if err != nil {
			return nil, nil, err
		}
		priv = k
	}
	if len(public) > 0 {
		k, err := parsePub(public)
		if err != nil {
			return nil, nil, err
		}
		pub = k
	}
	return priv, pub, nil
}

func edPrivate(pem []byte) (ed25519.PrivateKey, error) {
	k, err := jwt.ParseEdPrivateKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	ed, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, jwt.ErrNotEdPrivateKey
	}
	return ed, nil
}

func edPublic(pem []byte) (ed25519.PublicKey, error) {
	k, err := jwt.ParseEdPublicKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	ed, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, jwt.ErrNotEdPublicKey
	}
	return ed, nil
}

var (
	_ crypto.Signer = (*rsa.PrivateKey)(nil)
	_ crypto.Signer = (*ecdsa.PrivateKey)(nil)
)

func (s *signer) sign(user string, rev uint64, now time.Time) (string, error) {
	if s.private == nil {
		return "", ErrVerifyOnly
	}
	token, err := jwt.NewWithClaims(s.method, jwt.MapClaims{
		"username": user, "revision": rev, "exp": now.Add(s.ttl).Unix(),
	}).SignedString(s.private)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return token, nil
}

func (s *signer) verify(token string, now time.Time) (Info, bool) {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		if t.Method.Alg() != s.method.Alg() {
			return nil, errMethod
		}
		return s.check, nil
	}, jwt.WithTimeFunc(func() time.Time { return now }))
	user, isText := claims["username"].(string)
	rev, isNumber := claims["revision"].(float64)
	if err != nil || !isText || !isNumber || rev < 0 {
		return Info{}, false
	}
	return Info{User: user, Rev: uint64(rev)}, true
}
