// Package auth is the lane of users and roles in a cluster of members of both kinds: whoever
// leads, whoever is asked and whoever caught up by a snapshot, all decide alike and hold the
// same records.
package auth
