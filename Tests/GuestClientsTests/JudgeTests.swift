import GuestClients
import Testing
