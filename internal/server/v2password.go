package server

import "context"

// v2BcryptCost is that of passwords in the v2 API, whatever --bcrypt-cost says,
// as in etcd.
const v2BcryptCost = 10

// V2HashPassword returns the bcrypt hash of a password of the v2 API. It waits for
// its turn among all passwords that are being hashed.
func (m *Member) V2HashPassword(ctx context.Context, password string) ([]byte, error) {
	done, err := m.passwords.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return hashPassword(ctx, password, v2BcryptCost, m.passwords.crowded)
}

// V2PasswordMatches reports whether the hash is that of the password. It waits
// for the same turn.
func (m *Member) V2PasswordMatches(ctx context.Context, hash []byte, password string) (bool, error) {
	return m.passwords.matches(ctx, hash, password)
}
